"""The command lines of tokenizer training, preprocessing and merging, as processes."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import LIMIT_SECONDS, run_forked

ROOT = Path(__file__).parents[2]
PROGRAM = "def add(a, b):\n    return a + b  # 2023\n\n\nclass Point:\n    x: int = 10\n"


def start(tool: str, *args: str | Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run(tool: str, *args: str | Path) -> tuple[int, str, str]:
    """Run a tool and give its exit code, stdout and stderr."""
    result = run_forked(f"tools/{tool}.py", *args)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with two .jsonl files and the tokenizer trained on them by the tool."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("a", "b"):
        rows = [{"content": f"# {name}{i}\n" + PROGRAM * (i % 4)} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plain.py").write_text(PROGRAM * 20)
    inputs = [folder / "a.jsonl", folder / "b.jsonl", folder / "plain.py"]
    code, out, err = run(
        "train_tokenizer", "--input", *inputs, "--json-key", "content", "--vocab-size", "300",
        "--output", folder / "tokenizer.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "300 ids from 3 files" in out
    return folder


def preprocess(folder: Path, *args: str | Path) -> tuple[int, str, str]:
    return run(
        "preprocess_data", "--tokenizer-file", folder / "tokenizer.json", "--json-keys", "content",
        "--append-eod", *args,
    )  # fmt: skip


def test_preprocessing_in_parts_and_merging_equals_preprocessing_at_once(corpus, tmp_path):
    inputs = [corpus / "a.jsonl", corpus / "b.jsonl"]
    code, out, _ = preprocess(
        corpus, "--input", *inputs, "--output-prefix", tmp_path / "all", "--workers", "2",
        "--chunk-size", "25", "--dataset-impl", "mmap",
    )  # fmt: skip
    assert code == 0
    assert "80 records = 80 documents + 0 empty + 0 bad + 0 blank;" in out
    for path in inputs:
        prefix = tmp_path / "parts" / path.stem
        assert preprocess(corpus, "--input", path, "--output-prefix", prefix)[0] == 0
    merged = tmp_path / "parts" / "merged"
    for _ in range(2):  # the second time the output of the first lies among the inputs
        code, out, err = run(
            "merge_datasets", "--input", tmp_path / "parts", "--output-prefix", merged
        )
        assert (code, err) == (0, "")
        assert "2 token files, 80 documents" in out
    for suffix in (".bin", ".idx"):
        whole = Path(f"{tmp_path}/all_content_document{suffix}")
        assert Path(f"{merged}{suffix}").read_bytes() == whole.read_bytes()


def test_shards_merged_are_the_whole_byte_for_byte(corpus, tmp_path):
    """Of three files, one of them compressed and whole in one shard, so that another shard is empty."""
    rows = [json.dumps({"content": f"# {i}\n" + PROGRAM, "repo": f"r{i}"}) for i in range(99)]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode(), 0))
    inputs = ["--input", corpus / "a.jsonl", tmp_path / "c.jsonl.gz", corpus / "b.jsonl"]
    inputs += ["--provenance-keys", "repo"]
    assert preprocess(corpus, *inputs, "--output-prefix", tmp_path / "whole")[0] == 0
    said = []
    for number in range(1, 5):
        options = ["--output-prefix", tmp_path / "s/whole", "--shard", f"{number}/4"]
        code, out, err = preprocess(corpus, *inputs, *options)
        assert code == 0
        said.append("holds no document" in err)
        assert ("0 records = 0 documents" in out) == said[-1]
    assert sum(said) == 2
    merged = tmp_path / "m/whole_content_document"
    code, out, err = run("merge_datasets", "--input", tmp_path / "s", "--output-prefix", merged)
    assert (code, err) == (0, "")
    assert "4 token files, 179 documents" in out
    for suffix in ("bin", "idx", "provenance.arrow", "origin.json", "sha256"):
        whole = tmp_path / f"whole_content_document.{suffix}"
        assert Path(f"{merged}.{suffix}").read_bytes() == whole.read_bytes()
    code, out, _ = run("verify", "data", merged, "--tokenizer-file", corpus / "tokenizer.json")
    assert code == 0
    assert "good; 179 items in 179 documents, 179 rows of repo" in out


def test_verify_names_what_is_damaged_and_exits_with_2(corpus, tmp_path):
    for name in ("a", "b"):
        options = ["--input", corpus / f"{name}.jsonl", "--output-prefix", tmp_path / name]
        assert preprocess(corpus, *options)[0] == 0
    prefixes = [tmp_path / f"{name}_content_document" for name in ("a", "b")]
    code, out, err = run("verify", "data", *prefixes)
    assert (code, err) == (0, "")
    assert out.count(": good; 40 items in 40 documents") == 2
    path = Path(f"{prefixes[1]}.bin")
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    code, out, err = run("verify", "data", *prefixes, "--tokenizer-file", corpus / "tokenizer.json")
    assert code == 2
    assert [line.split(": ")[1].split(";")[0] for line in out.splitlines()] == [
        "good",
        "2 found wrong",
    ]
    assert "1 ids are not from 0 to 299" in err and "is not what" in err
    assert err.count("\n") == 2


def test_training_ignores_the_order_of_files_and_keeps_to_its_share(corpus, tmp_path):
    for name, files in [("ab", ["a", "b"]), ("ba", ["b", "a"]), ("part", ["a", "b"])]:
        limit = ["--max-bytes", "2"] if name == "part" else []
        inputs = [corpus / f"{file}.jsonl" for file in files]
        code, _, err = run(
            "train_tokenizer", "--input", *inputs, "--json-key", "content", "--vocab-size", "300",
            "--output", tmp_path / name, *limit,
        )  # fmt: skip
        assert code == 0
        assert ("gives only" in err) == (name == "part"), err
    assert (tmp_path / "ab").read_bytes() == (tmp_path / "ba").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_of_more_than_all_that_is_wanted_is_not_trained_on(corpus, tmp_path):
    long = json.dumps({"content": "zq" * 600_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(long + json.dumps({"content": PROGRAM * 10}) + "\n")
    code, _, err = run(
        "train_tokenizer", "--input", tmp_path / "a.jsonl", "--json-key", "content", "--vocab-size", "300",
        "--output", tmp_path / "tokenizer.json", "--max-bytes", "1000",
    )  # fmt: skip
    assert code == 0 and "1 records without" in err
    definition = (tmp_path / "tokenizer.json").read_text()
    assert '"zq"' not in definition


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing_behind(corpus, tmp_path, number, code):
    line = json.dumps({"content": PROGRAM * 10}) + "\n"
    (tmp_path / "long.jsonl").write_text("bad\n" + line * 60_000)  # 56 MB: many seconds of work
    process = start(
        "preprocess_data", "--tokenizer-file", corpus / "tokenizer.json", "--json-keys", "content",
        "--input", tmp_path / "long.jsonl", "--output-prefix", tmp_path / "out", "--workers", "2",
        "--chunk-size", "20",
    )  # fmt: skip
    assert "skipped" in process.stderr.readline()  # the first chunk is written
    assert len(list(tmp_path.glob("out*.bin.tmp"))) == 1
    process.send_signal(number)
    process.communicate(timeout=LIMIT_SECONDS)  # ends when the workers are gone too
    assert process.returncode == code
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("options", [[], ["--shuffle", "--workers", "2"]])
def test_a_killed_run_publishes_nothing_and_the_next_one_is_whole(corpus, tmp_path, options):
    line = json.dumps({"content": PROGRAM * 10}) + "\n"
    (tmp_path / "long.jsonl").write_text("bad\n" + line * 60_000)  # many seconds of work
    arguments = [
        "preprocess_data", "--tokenizer-file", corpus / "tokenizer.json", "--json-keys", "content",
        "--provenance-keys", "repo", "--input", tmp_path / "long.jsonl", "--output-prefix", tmp_path / "out",
    ]  # fmt: skip
    process = start(*arguments, "--chunk-size", "20", *options)
    assert "skipped" in process.stderr.readline()
    process.kill()
    process.communicate(timeout=LIMIT_SECONDS)
    left = sorted(path.name for path in tmp_path.glob("out*"))
    assert left == [f"out_content_document.{name}.tmp" for name in ("bin", "provenance.arrow")]
    (tmp_path / "long.jsonl").write_text("bad\n" + line * 3000)
    assert run(*arguments, *options)[0] == 0
    assert run("verify", "data", tmp_path / "out_content_document")[0] == 0
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("options", [[], ["--shuffle"], ["--provenance-keys", "path"]])
def test_a_disk_that_fills_is_one_line_and_leaves_nothing(corpus, tmp_path, options):
    row = json.dumps({"content": PROGRAM, "path": "x" * 200})
    (tmp_path / "long.jsonl").write_text((row + "\n") * 2000)
    arguments = ["--input", tmp_path / "long.jsonl", "--output-prefix", tmp_path / "out", *options]
    arguments += ["--json-keys", "content", "--tokenizer-file", corpus / "tokenizer.json"]
    # No file over 50 kB, or 300 kB where it is the side file that must not fit: it fails as a full disk does.
    limit = f'ulimit -f {300 if "path" in options else 50}; exec "$@"'
    command = [sys.executable, ROOT / "tools/preprocess_data.py", *arguments]
    result = subprocess.run(
        ["bash", "-c", limit, "-", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert "not complete" in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_that_does_not_fit_on_the_disk_is_one_line_and_leaves_nothing(corpus, tmp_path):
    command = [sys.executable, ROOT / "tools/train_tokenizer.py", "--input", corpus / "plain.py"]
    command += ["--vocab-size", "300", "--output", tmp_path / "tokenizer.json"]
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "-", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert "tokenizer.json cannot be written: File too large" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "{corpus}/missing.jsonl"], "missing.jsonl does not exist"),
        (["--input", "{tmp}/empty.jsonl"], "empty.jsonl is empty"),
        (["--input", "{corpus}/a.jsonl", "--tokenizer-file", "{tmp}/cut.json"], "cut.json is not JSON"),
        (["--input", "{corpus}/a.jsonl", "--json-keys", "text"], "40 bad (40 no key 'text')"),
        (["--input", "{corpus}/a.jsonl", "--json-keys", "text", "--strict"], "a.jsonl:1: no key 'text'"),
        (["--input", "{corpus}/a.jsonl", "--worker", "2"], "did you mean --workers?"),
        (["--partitions", "4", "--log-interval", "9"], "use --workers, and --shard"),
        (["--input", "{corpus}/a.jsonl", "--tokenizer-type", "GPT2BPETokenizer"], "needs --vocab-file"),
        ([], "no --input"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(corpus, tmp_path, args, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.json").write_text((corpus / "tokenizer.json").read_text()[:1000])
    filled = [arg.format(corpus=corpus, tmp=tmp_path) for arg in args]
    code, out, err = preprocess(corpus, "--output-prefix", tmp_path / "out", *filled)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if " skipped " not in line]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("tool", "args", "message"),
    [
        ("train_tokenizer", ["--input", "{c}/a.jsonl", "--output", "{t}/o"], "no text to train"),
        (
            "train_tokenizer",
            ["--input", "{c}/plain.py", "--vocab-size", "9", "--output", "{t}/o"],
            "need 275",
        ),
        ("train_tokenizer", ["--input", "{c}/plain.py", "--output", "{t}"], "is a folder; name a"),
        (
            "train_tokenizer",
            ["--input", "{c}/plain.py", "--output", "{c}/plain.py/o"],
            "no folder for it",
        ),
        (
            "train_tokenizer",
            ["--inptu", "{c}/plain.py", "--output", "{t}/o"],
            "did you mean --input?",
        ),
        ("merge_datasets", ["--input", "{t}", "--output-prefix", "{t}/o"], "no .bin and .idx"),
        (
            "merge_datasets",
            ["--input", "{t}/x", "--output-prefix", "{t}/o"],
            "x.bin does not exist",
        ),
        (
            "merge_datasets",
            ["--input", "{t}/o", "--output-prefix", "{t}/o"],
            "both input and output",
        ),
    ],
)
def test_mistakes_of_the_other_tools_are_one_line_and_exit_code_2(
    corpus, tmp_path, tool, args, message
):
    code, out, err = run(tool, *[arg.format(c=corpus, t=tmp_path) for arg in args])
    assert (code, out, len(err.splitlines())) == (2, "", 1 + err.count("were skipped"))
    assert message in err
    assert not list(tmp_path.iterdir())


def test_preprocessing_needs_no_torch():
    script = "import sys; sys.argv = ['x', '--help']; import preprocess_data; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
