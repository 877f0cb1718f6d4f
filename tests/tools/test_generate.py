"""tools/generate.py: text, JSON lines, infilling, two processes, and mistakes named in one line."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron.cli import EXIT_LOST_PEER
from megatron.errors import CheckpointError, ConfigError, DataError
from tests.convert.runs import make_run
from tests.forked import Forked
from tests.world import launcher_environment, topology
from tools import convert_to_hf
from tools import generate as tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, max_position_embeddings=64)
    return folder


def generate(run: Path, capsys, *args: object) -> str:
    """What it prints. Joins and leaves a group of this process alone."""
    try:
        assert tool.main(["--load", str(run), *map(str, args)]) == 0
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return capsys.readouterr().out


def test_text_and_json_are_the_same_completion(run: Path, capsys) -> None:
    args = ("--prompt", "def add(", "--max-new-tokens", 8, "--temperature", 1, "--seed", 3)
    text = generate(run, capsys, *args)
    (line,) = generate(run, capsys, *args, "--json", "--logprobs", 2).splitlines()
    done = json.loads(line)
    assert text == done["text"] + "\n"
    assert done["num_tokens"] == len(done["logprobs"]) == 8 and done["finish_reason"] == "length"
    assert all(len(one["top"]) == 2 for one in done["logprobs"])
    assert generate(run, capsys, *args, "--echo") == f"def add({text}"
    assert generate(run, capsys, *args[:-1], 4) != text


def test_many_prompts_are_read_and_written_as_json_lines(run: Path, tmp_path, capsys) -> None:
    rows = [
        {"prompt": "int main", "n": 2, "id": {"task": 7}, "options": {"temperature": 1}},
        {"prefix": "x = ", "suffix": "\n", "options": {"max_new_tokens": 2, "ignore_eod": True}},
        {"prompt": "def f("},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    generate(run, capsys, "--input", source, "--output", target, "--max-new-tokens", 5)
    done = [json.loads(line) for line in target.read_text().splitlines()]
    names = sorted((str(one["id"]), one["sample"]) for one in done)
    assert names == [("2", 0), ("3", 0), ("{'task': 7}", 0), ("{'task': 7}", 1)]
    assert next(one for one in done if one["id"] == 2)["num_tokens"] == 2
    alone = generate(run, capsys, "--prompt", "def f(", "--max-new-tokens", 5)
    assert next(one for one in done if one["id"] == 3)["text"] + "\n" == alone


def test_a_prompt_may_hold_what_only_python_takes_for_the_end_of_a_line(run, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    text = "a\u2028b\x85c"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n", newline="")
    args = ("--max-new-tokens", 5)
    out = generate(run, capsys, "--input", path, *args)
    assert out == generate(run, capsys, "--prompt", text, *args)


def test_a_file_is_filled_in_at_its_cursor(run: Path, tmp_path, capsys) -> None:
    file = tmp_path / "a.py"
    file.write_text("def add(<CURSOR>):\n    return a\n")
    args = ("--max-new-tokens", 6, "--temperature", 1)
    filled = generate(run, capsys, "--file", file, "--echo", *args)
    between = ("--prefix", "def add(", "--suffix", "):\n    return a\n")
    middle = generate(run, capsys, *between, *args)
    assert filled == f"def add({middle[:-1]}):\n    return a\n"
    assert generate(run, capsys, *between, *args, "--order", "spm") != middle


def test_an_exported_folder_shows_each_text_under_its_name(run, tmp_path, capsys, monkeypatch):
    convert_to_hf.main(["--load", str(run), "--save", str(tmp_path / "out")])
    capsys.readouterr()
    rows = [
        {"id": "completion", "prompt": "def add("},
        {"id": "infilling", "prefix": "def add(", "suffix": "):\n"},
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    args = ("--echo", "--max-new-tokens", 4, "--temperature", 0.4, "--top-p", 0.95)
    out = generate(tmp_path / "out", capsys, "--input", "-", *args)
    shown = {part.split(",")[0]: part.split("tokens\n")[1] for part in out.split("--- ") if part}
    assert list(shown) == ["completion", "infilling"]
    assert all(text.startswith("def add(") for text in shown.values())
    assert shown["infilling"].endswith("):\n\n")
    assert shown["completion"] == generate(run, capsys, "--prompt", "def add(", *args)


def test_several_samples_and_stdin(run: Path, capsys, monkeypatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"def add("))
    monkeypatch.setattr(sys, "stdin", stdin)
    out = generate(run, capsys, "-n", 2, "--temperature", 1, "--max-new-tokens", 4)
    assert out.count("--- prompt, sample") == 2


@pytest.mark.parametrize(
    "args, error, words",
    [
        (("--prompt", "a", "--file", "b"), ConfigError, "--prompt and --file are given"),
        (("--prompt", "a", "--max-new-tokens", 64), ConfigError, "give 63 at most"),
        (("--prompt", "x = 1\n" * 20, "--max-new-tokens", 9), ConfigError, "give --truncate"),
        (("--prompt", "a", "-n", 2), ConfigError, "--temperature 0 are the same text"),
        (("--prompt", "a", "--logprobs", 1), ConfigError, "give --json"),
        (("--prompt", "a", "--top-p", 2), ConfigError, "--top-p is 2"),
        (("--prompt", "a", "--batch-size", 0), ConfigError, "--batch-size is 0"),
        (("--prompt", "a", "--iteration", 9), CheckpointError, "no checkpoint of iteration 9"),
        (("--prompt", "a", "--tensor-model-parallel-size", 2), ConfigError, "there are 1"),
        (("--file", "missing.py"), DataError, "missing.py cannot be read"),
        (("--promt", "a"), ConfigError, "did you mean --prompt"),
        (("--prompt", "a", "--n", 2), ConfigError, r"--n is not an option; did you mean -n\?"),
    ],
)
def test_mistakes_are_named(run: Path, capsys, args, error, words) -> None:
    with pytest.raises(error, match=words):
        generate(run, capsys, *args)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 holds list"),
        ('{"text": "a"}', "line 2 has neither prompt"),
        ('{"prompt": 3}', "line 2: prompt"),
        ('{"prompt": "a", "n": 0}', "line 2: n is 0"),
        ('{"prompt": "a", "options": {"temp": 1}}', "line 2: temp is not an option"),
        ('{"prompt": "a", "options": {"top_k": "3"}}', "line 2: top_k is '3'"),
        ('{"prompt": "a", "options": {"top_p": 3}}', "line 2: --top-p is 3"),
        ('{"prompt": "a", "options": {"temperature": NaN}}', "line 2: --temperature is nan"),
        ('{"prompt": "a", "options": {"stop": ["\\ud800"]}}', "line 2: --stop .* is not Unicode"),
        ('{"prompt": "\\ud800"}', "line 2: the prompt is not Unicode"),
    ],
)
def test_lines_that_cannot_be_read_are_named(run: Path, tmp_path, capsys, line, words) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises((ConfigError, DataError), match=words):
        generate(run, capsys, "--input", path)


def test_a_file_that_cannot_be_written_is_named_before_a_model_is_loaded(
    run: Path, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(tool, "load", None)
    with pytest.raises(ConfigError, match=r"out\.jsonl cannot be written: No such file"):
        generate(run, capsys, "--prompt", "a", "--output", tmp_path / "none" / "out.jsonl")


def test_help_gives_defaults_that_are_nought(capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "0 takes the likeliest token (default: 0.0)" in text
    assert "samples of each prompt (default: 1)" in text


def test_the_program_of_the_documentation_runs(run: Path, capsys) -> None:
    (program,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/generation.md").read_text(), re.DOTALL
    )
    assert 'Path("runs/py")' in program
    try:
        exec(program.replace("runs/py", str(run)), {})
    finally:
        dist.destroy_process_group()
    assert capsys.readouterr().out.count("finish_reason=") == 4


def test_any_text_is_printed_in_any_locale(run: Path) -> None:
    command = [sys.executable, "tools/generate.py", "--load", str(run), "--prompt", "\u00e9"]
    environment = launcher_environment() | {"PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONIOENCODING": "ascii"}
    command += ["--echo", "--max-new-tokens", "2"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("\u00e9".encode())


def test_two_processes_print_once_what_one_prints(run: Path, capsys) -> None:
    args = ["--load", str(run), "--prompt", "def add(", "--max-new-tokens", "9"]
    launch = [sys.executable, "tools/launch.py", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "tools/generate.py", *args, "--pipeline-model-parallel-size", "2"]
    environment = launcher_environment() | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == generate(run, capsys, *args[2:])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_loses_another_says_so_in_a_line_and_ends(tmp_path, lost) -> None:
    make_run(tmp_path, max_position_embeddings=4096)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    args = ("--load", tmp_path, "--prompt", "a", "--pipeline-model-parallel-size", 2, "--cpu")
    args = (*args, "--ignore-eod", "--max-new-tokens", 4000)
    processes = [
        Forked("tools/generate.py", *args, environment=topology(rank, 2, store.port))
        for rank in range(2)
    ]
    processes[0].wait_for_output()
    processes[lost].send_signal(signal.SIGKILL)
    processes.pop(lost).communicate()
    _, said = processes[0].communicate()
    assert processes[0].returncode == EXIT_LOST_PEER, said
    assert "another process of this model is gone" in said and "Traceback" not in said


def test_a_message_is_asked_as_training_wrote_it(run: Path, tmp_path, capsys) -> None:
    args = ("--max-new-tokens", 6, "--json")
    with pytest.raises(ConfigError, match="was trained on no conversations"):
        generate(run, capsys, "--chat", "hi", *args)
    asked = json.loads(generate(run, capsys, "--chat", "hi", "--chat-template", "plain", *args))
    spelled = json.loads(
        generate(run, capsys, "--prompt", "Question:\nhi\n\nAnswer:\n", *args, "--seed", 1234)
    )
    assert (asked["text"], asked["num_prompt_tokens"]) == (
        spelled["text"],
        spelled["num_prompt_tokens"],
    )
    template = {"system": "{content}", "user": "U {content}", "end": "<|endoftext|>"}
    template["assistant"] = "A {content}<|endoftext|>"
    (run / "tokenizer" / "chat_template.json").write_text(json.dumps(template))
    try:
        messages = [{"role": "user", "content": "hi"}]
        (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
        (line,) = generate(run, capsys, "--input", tmp_path / "in.jsonl", *args).splitlines()
        expected = json.loads(generate(run, capsys, "--prompt", "U hiA ", *args))
        assert json.loads(line)["num_prompt_tokens"] == expected["num_prompt_tokens"]
        assert json.loads(line)["text"] == expected["text"]
    finally:
        (run / "tokenizer" / "chat_template.json").unlink()
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "tool", "content": ""}]}\n')
    with pytest.raises(DataError, match="line 1: messages are a role that is none of system"):
        generate(run, capsys, "--input", tmp_path / "bad.jsonl")


def test_text_that_stands_in_the_training_data_is_named_or_withheld(run, tmp_path, capsys) -> None:
    pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort")
    pytest.importorskip("megatron.attribution._suffix_search", reason="make env")
    from megatron.convert.source import ModelSource
    from tests.attribution.conftest import index, write

    args = ("--prompt", "def add(", "--max-new-tokens", 50, "--ignore-eod")
    text = generate(run, capsys, *args).removesuffix("\n")
    tokenizer = ModelSource.open(run).tokenizer
    rows = {"repo": ["octocat/a"], "license": ["MIT"]}
    prefix = write(tmp_path / "data", [f"def add({text} end"], tokenizer, rows=rows)
    index([prefix], tokenizer, "trace")
    args += ("--attribution", prefix)
    (line,) = generate(run, capsys, *args, "--json").splitlines()
    done = json.loads(line)
    size = len(text.encode())
    assert done["text"] == text and done["attribution"]["longest_bytes"] == size
    assert "octocat/a" in done["attribution"]["notice"]
    assert generate(run, capsys, *args) == text + "\n"
    args += ("--verbatim", "withhold")
    assert generate(run, capsys, *args, "--verbatim-bytes", size + 1) == text + "\n"
    assert generate(run, capsys, *args, "--verbatim-bytes", size) == "\n"
    (line,) = generate(run, capsys, *args, "--verbatim-bytes", size, "--json").splitlines()
    held = json.loads(line)
    assert (held["text"], held["finish_reason"]) == ("", "withheld")
    few = (*args, "--verbatim-bytes", 4, "--max-new-tokens", 8)  # fewer tokens than are named
    assert generate(run, capsys, *few) == "\n"
    # nor by the tokens' scores, nor if the document has opted out since the model was trained
    opted_out = tmp_path / "out.jsonl"
    opted_out.write_text('{"repo": "octocat/a"}\n')
    args += ("--exclude-documents", opted_out, "--logprobs", 1)
    (line,) = generate(run, capsys, *args, "--verbatim-bytes", size, "--json").splitlines()
    held = json.loads(line)
    assert held["finish_reason"] == "withheld" and "logprobs" not in held
    assert "octocat" not in line and held["attribution"]["spans"] == []
    with pytest.raises(ConfigError, match="need --attribution PREFIX"):
        generate(run, capsys, "--prompt", "a", "--verbatim", "withhold")
