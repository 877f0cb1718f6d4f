"""tools/attribute.py: indexes are built beside token files and asked, for people and programs, without torch."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort")
pytest.importorskip("megatron.attribution._suffix_search", reason="csrc/ is not compiled: make env")
from tests.attribution.conftest import write
from tests.data.conftest import source_texts, tokenizer, tokenizer_file  # noqa: F401


def attribute(*arguments, stdin=""):
    # An import of torch would be an error.
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'attribute.py'; import runpy; "
        "runpy.run_path('tools/attribute.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)


@pytest.fixture(scope="module")
def data(source_texts, tokenizer, tokenizer_file, tmp_path_factory):  # noqa: F811
    """Two token files with all indexes."""
    folder = tmp_path_factory.mktemp("data")
    for name, some in (("a", source_texts[:3]), ("b", source_texts[3:5])):
        rows = {"repo": [f"octocat/{name}"] * len(some), "license": ["MIT"] * len(some)}
        write(folder / name, some, tokenizer, rows=rows)
    result = attribute("build", folder / "a", folder / "b.idx", "--tokenizer-file", tokenizer_file)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("built 6 indexes, ") and "0 were up to date" in result.stdout
    return folder


def test_build_makes_only_what_is_missing_or_made_otherwise(data, tokenizer_file):  # noqa: F811
    flags = ("--tokenizer-file", tokenizer_file, "--kinds", "trace")
    result = attribute("build", data / "a", data / "b", *flags)
    assert result.stdout == "built 0 indexes, 0.0 MB; 2 were up to date\n"
    (data / "b.trace").unlink()
    assert attribute("build", data / "a", data / "b", *flags).stdout.startswith("built 1 ")
    assert attribute("build", data / "b", *flags, "--line-starts").stdout.startswith("built 1 ")
    assert attribute("build", data / "b", *flags).stdout.startswith("built 1 ")
    assert not list(data.glob("*.tmp"))


def test_membership_reads_standard_input_and_needs_no_tokenizer(data, source_texts):  # noqa: F811
    text = source_texts[3][1000:1600]
    result = attribute("membership", data / "a", data / "b", "--json", stdin=text)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["covered_bytes"] > 480
    assert {name for span in answer["spans"] for name in span["datasets"]} == {str(data / "b")}
    assert (
        "of 600 bytes stand in the data" in attribute("membership", data / "b", stdin=text).stdout
    )


def test_trace_names_repository_licence_and_lines(data, source_texts, tokenizer_file, tmp_path):  # noqa: F811
    lines = source_texts[1].split("\n")[99:115]
    (tmp_path / "query.py").write_text("\n".join(lines))
    flags = ("--tokenizer-file", tokenizer_file, "--file", tmp_path / "query.py")
    result = attribute("trace", data / "a", data / "b", "--json", *flags)
    assert result.returncode == 0, result.stderr
    best = json.loads(result.stdout)["documents"][0]
    assert (best["dataset"], best["document"]) == (str(data / "a"), 1)
    assert best["provenance"] == {"repo": "octocat/a", "license": "MIT"}
    assert best["parts"][0]["lines"] == [
        100,
        100 + len("\n".join(lines).strip("\n").split("\n")) - 1,
    ]
    shown = attribute("trace", data / "a", "--color", "always", *flags).stdout
    assert "repo=octocat/a  license=MIT" in shown and "\x1b[" in shown and " times" in shown
    assert "\x1b[" not in attribute("trace", data / "a", *flags).stdout


def test_query_names_sources_and_licences(data, source_texts, tokenizer_file, tmp_path):  # noqa: F811
    lines = source_texts[4].split("\n")[40:60]
    lines[9] = lines[9] + "  # not as it was"
    (tmp_path / "query.py").write_text("\n".join(lines))
    flags = ("--tokenizer-file", tokenizer_file, "--file", tmp_path / "query.py")
    result = attribute("query", data / "a", data / "b", "--json", *flags)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    for best in (answer["documents"][0], answer["similar"][0]):
        assert (best["dataset"], best["document"]) == (str(data / "b"), 1)
    assert answer["similar"][0]["lines"][0] in range(41, 44)
    assert 0.9 < answer["similar"][0]["share"] < 1
    assert answer["membership"]["covered_bytes"] > 0.5 * answer["bytes"]
    assert answer["licenses"][0]["license"] == "MIT"
    assert "  octocat/b, lines 4" in answer["notice"] and "\n    MIT\n" in answer["notice"]
    shown = attribute("query", data / "a", data / "b", *flags).stdout
    assert "documents that are like it:" in shown and answer["notice"].rstrip() in shown
    hits = json.loads(attribute("search", data / "a", data / "b", "--json", *flags).stdout)
    assert hits["similar"] == answer["similar"]
    out = tmp_path / "out.jsonl"
    out.write_text('{"repo": "octocat/b"}\n')
    words = attribute("search", data / "a", "--text", "import return", *flags[:2]).stdout
    assert words.startswith("  1. its words alone, as at ") and "of its lines" not in words
    some = (*flags, "--kinds", "search", "--exclude-documents", out)
    left = json.loads(attribute("query", data / "a", data / "b", "--json", *some).stdout)
    assert {one["dataset"] for one in left["similar"]} == {str(data / "a")}


def test_opt_out_list_takes_effect_at_once(data, source_texts, tokenizer_file, tmp_path):  # noqa: F811
    (tmp_path / "out.jsonl").write_text('{"repo": "octocat/a"}\n')
    text = source_texts[1][500:1500]
    flags = ("--json", "--tokenizer-file", tokenizer_file)
    for command in ("membership", "trace"):
        before = attribute(command, data / "a", data / "b", *flags, stdin=text)
        after = attribute(
            *(command, data / "a", data / "b", *flags),
            *("--exclude-documents", tmp_path / "out.jsonl"),
            stdin=text,
        )
        assert json.loads(before.stdout)["covered_bytes"] > 900
        assert json.loads(after.stdout)["covered_bytes"] < 100, after.stderr


def test_list_says_what_there_is_and_what_is_stale(data, source_texts, tokenizer, tmp_path):  # noqa: F811
    result = attribute("list", data / "a", "--verify")
    assert result.returncode == 0 and result.stdout.count("up to date") == 3
    header = json.loads(attribute("list", data / "a", "--json").stdout.splitlines()[0])
    assert header["kind"] == "membership" and header["rate"] == 1e-6
    for name in ("a.membership", "a.bin", "a.idx"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    write(tmp_path / "a", source_texts[:1], tokenizer)
    result = attribute("list", tmp_path / "a")
    assert result.returncode == 2 and "is stale" in result.stderr
    assert result.stdout == f"{tmp_path}/a.trace: none\n{tmp_path}/a.search: none\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trace", "nowhere", "--text", "x", "--tokenizer-file", "t"],
            "nowhere.idx does not exist",
        ),
        (
            ["membership", "nowhere", "--text", "x"],
            "nowhere.membership does not exist; make it with",
        ),
        (["membership", "nowhere", "--text", "  "], "the text is empty"),
        (["build", "nowhere", "--memory", "0"], "--memory is 0"),
        (["build", "nowhere", "--kinds", "tea"], "invalid choice: 'tea'"),
        (["build", "nowhere", "--false-positives", "1e-20"], "the smallest is 1e-12"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    result = attribute(*arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
