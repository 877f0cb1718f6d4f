"""tools/curate.py: from folders to clean text in single stages and in one pipeline, and what it says of mistakes."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
pytest.importorskip("megatron.curation._minhash", reason="csrc/ is not compiled: make env")


@pytest.fixture
def curate(capsys):
    main = runpy.run_path(str(ROOT / "tools/curate.py"))["main"]

    def run(*words):
        main(list(map(str, words)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def repositories(tmp_path):
    code = "".join(f"def function_{i}(value):\n    return value + {i}\n\n" for i in range(20))
    files = {
        "one/package.json": json.dumps(
            {"license": "MIT", "description": "functions that add a number"}
        ),
        "one/a.py": code,
        "one/b.py": code + "\n# the same again\n",
        "one/long.py": "x = '" + "a" * 2000 + "'\n",
        "two/LICENSE": "GNU GENERAL PUBLIC LICENSE\nVersion 2",
        "two/c.py": "import this\n",
        "three/setup.py": "setup(license='MIT')\n",
        "three/d.py": "print('three')\n",
    }
    root = tmp_path / "repositories"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "optout.txt").write_text("three\n")
    return root


def kept_ids(folder):
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return sorted(json.loads(line)["id"] for line in lines)


def test_stages_one_by_one_and_a_pipeline_keep_the_same_files(curate, repositories, tmp_path):
    out = curate("collect", repositories, "--output", tmp_path / "all")
    assert "8 records = 8 kept + 0 dropped + 0 bad" in out
    curate(
        "select",
        "--input",
        tmp_path / "all",
        "--output",
        tmp_path / "sel",
        "--opt-out",
        tmp_path / "optout.txt",
    )
    curate("filter", "--input", tmp_path / "sel", "--output", tmp_path / "fil")
    out = curate(
        "dedup", "--input", tmp_path / "fil", "--output", tmp_path / "uni", "--format", "jsonl"
    )
    assert "1 dropped (1 dedup: near-duplicate)" in out
    (tmp_path / "p.yaml").write_text(
        f"input: {tmp_path / 'all'}\noutput: {tmp_path / 'piped'}\nformat: jsonl\n"
        f"stages:\n  - select: {{opt_out: [{tmp_path / 'optout.txt'}]}}\n  - filter\n  - dedup: {{threshold: 0.7}}\n"
    )
    assert "time: about" in curate("run", tmp_path / "p.yaml", "--dry-run")
    assert not (tmp_path / "piped").exists()
    out = curate("run", tmp_path / "p.yaml", "--workers", 2)
    assert "8 records = 2 kept + 6 dropped" in out
    assert kept_ids(tmp_path / "piped") == kept_ids(tmp_path / "uni")
    assert "one:package.json" in kept_ids(tmp_path / "uni")
    ids = ("one:a.py", "one:b.py", "one:long.py", "two:c.py", "three:d.py")
    told = {id: curate("why", "--output", tmp_path / "piped", id) for id in ids}
    assert "dedup: near-duplicate" in told["one:a.py"] + told["one:b.py"]
    assert "filter: long-line = 2006" in told["one:long.py"]
    assert "select: license (GPL-2.0-or-later (repository))" in told["two:c.py"]
    assert "select: opt-out (three in optout.txt)" in told["three:d.py"]
    card = (tmp_path / "piped/README.md").read_text()
    assert "8 documents were read" in card and "| dedup: near-duplicate | 1 |" in card
    assert not list((tmp_path / "piped").glob(".pass-*"))


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("stages: []", "has no stages"),
        ("stages: [polish]", "'polish' is no stage; known are select, filter, dedup"),
        ("stages: [{filter: {max-lime: 3}}]", "filter: max-lime is not an option"),
        (
            "stages: [{filter: {max-line: many}}]",
            "filter: argument --max-line: invalid int value: 'many'",
        ),
        ("stages: [format, dedup, pii]", "pii stands behind format and would change text"),
        ("stages: [filter]\ninptu: a", "the file: inptu is not an option"),
        ("stages: [filter]\ninput: 'no/*.jsonl'", r"no file is named no/\*\.jsonl"),
        ("stages: [filter]", "no --input"),
        ("- a", "holds no options"),
        ("stages: [", "is not YAML"),
    ],
)
def test_pipeline_that_cannot_run_says_what_is_wrong(curate, tmp_path, pipeline, message):
    path = tmp_path / "p.yaml"
    path.write_text(pipeline)
    with pytest.raises(ConfigError, match=message):
        curate("run", path)


def test_document_that_the_ledger_lacks_is_an_error(curate, repositories, tmp_path):
    curate("collect", repositories, "--output", tmp_path / "all")
    folder = tmp_path / "all"
    with pytest.raises(
        DataError, match=r"has no document 'none'; ids of \S+ are as one:\S+ and one:\S+$"
    ):
        curate("why", "--output", folder, "none")
    with pytest.raises(DataError, match=r"has no document 'C.PY'; ids of .* are as two:c\.py$"):
        curate("why", "--output", folder, "C.PY")
    with pytest.raises(DataError, match=r"no id is given; ids of .* are as one:"):
        curate("why", "--output", folder)


def test_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "tools/curate.py",
        "filter",
        "--input",
        "missing.jsonl",
        "--output",
        str(tmp_path / "o"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "curate.py: error: input missing.jsonl does not exist (files only; nothing is downloaded)\n"
    )


def test_a_run_that_is_terminated_says_how_to_go_on_and_then_does(tmp_path):
    rows = [
        json.dumps({"text": f"def f{n}(x):\n    return x\n" * 20, "id": str(n)})
        for n in range(6000)
    ]
    (tmp_path / "in.jsonl").write_text("no record\n" + "\n".join(rows) + "\n")
    command = [sys.executable, "-B", ROOT / "tools/curate.py", "filter", "--input", tmp_path / "in.jsonl"]  # fmt: skip
    command += ["--output", tmp_path / "out", "--shard-mb", "0.02"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True
    ) as stopped:
        assert "set aside in.jsonl:1" in stopped.stderr.readline()  # of the first shard of 180
        stopped.send_signal(signal.SIGTERM)
        said = stopped.stderr.read().splitlines()
    assert stopped.returncode == 143
    assert said == ["curate.py: terminated; what is finished is kept, and the same command goes on"]
    again = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=True
    )
    assert "continuing read filter: " in again.stderr
    assert "6,001 records = 6,000 kept + 0 dropped + 1 bad (1 not JSON)" in again.stdout
    assert "MB/s" not in again.stdout  # of bytes that were read before


def test_what_was_changed_is_said_at_the_end(curate, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"text": "mail = jane.miller@gmail.com"}\n{"text": "x = 1"}\n'
    )
    said = curate("pii", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    assert "2 kept + 0 dropped + 0 bad; changed: 1 pii: redacted; " in said
    assert "MB/s" in said


def test_text_under_another_key_is_an_error_that_names_the_option(curate, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"content": "x = 1", "hexsha": "a"}\n' * 3)
    command = ["filter", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out"]
    with pytest.raises(
        DataError, match="has text under 'text'; name the key that has by --text-key"
    ):
        curate(*command)
    assert "3 kept" in curate(*command, "--text-key", "content", "--overwrite")
