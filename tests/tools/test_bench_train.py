"""tools/bench.py train steps a real run and says what it took; its figures are not looked at here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import run_forked

ROOT = Path(__file__).parents[2]
SMALL = ["--model", "tiny", "--seq-length", "64", "--steps", "2", "--warmup", "1", "--threads", "1"]


def bench(*args: object) -> subprocess.CompletedProcess:
    return run_forked("tools/bench.py", "train", *args)


def data_of(corpus) -> list[str]:
    return ["--data-path", str(corpus.train), "--tokenizer-file", str(corpus.tokenizer)]


def test_a_run_is_timed_and_every_step_is_in_the_json(corpus, tmp_path):
    path, traces = tmp_path / "out/report.json", tmp_path / "traces"
    result = bench(
        *SMALL,
        *data_of(corpus),
        *("--documents", "--bf16", "--json", path, "--profile", traces),
        *("--", "--num-layers", "2", "--global-batch-size", "8", "--hidden-dropout", "0.1"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    expected = {
        "num_layers": 2,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "seq_length": 64,
        "dtype": "bfloat16",
        "documents": True,
        "hidden_dropout": 0.1,
        "tokens_per_step": 512,
    }
    assert {name: report[name] for name in expected} == expected
    assert len(report["step_seconds"]) == len(report["losses"]) == 2
    assert report["tokens_per_second"]["max"] == 512 / min(report["step_seconds"])
    assert set(report["part_seconds"]) == {"data", "forward", "backward", "optimizer", "rest"}
    assert all(seconds > 0 for seconds in report["part_seconds"].values())
    assert 0 < report["attention_share"] < 1  # its documents are shorter than the samples
    assert report["tflops_per_gpu_causal"] < report["tflops_per_gpu_full"]
    assert report["mfu_full"] is None  # no peak is known for a CPU
    for line in ("| tokens/s |", "| backward |", "| peak memory |", "| `aten::mm` |"):
        assert line in result.stdout
    assert [file.name for file in traces.iterdir()] == ["rank_0.json.gz"]


def test_ours_and_gpt_bigcode_take_turns(corpus, tmp_path):
    path = tmp_path / "report.json"
    result = bench(
        *("--model", "tiny", "--seq-length", 64, "--steps", 2, "--rounds", 2, "--warmup", 1),
        *("--threads", 1, "--peer", "--cpu-time", "--bf16", "--json", path, *data_of(corpus)),
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["peer"].startswith("transformers ")
    assert len(row["ours"]) == len(row["peer_tokens_per_second"]) == 2
    assert "train, bfloat16" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "2b"], "invalid choice: '2b'"),
        (["--steps", "0"], "--steps and --rounds must be above 0"),
        (["--threads", "0"], "--threads must be above 0"),
        (["--data-path", "nowhere"], "--data-path and --tokenizer-file belong together"),
        (["--prepare"], "--prepare needs --data-folder"),
        (["--peer-compiled"], "--peer-compiled needs --peer"),
        (["--cpu-time"], "--cpu-time needs --peer and --threads 1"),
        (["--peer", "--documents"], "leave out --documents"),
        (["--", "--num-layer", "2"], "did you mean --num-layers?"),
    ],
)
def test_mistakes_are_one_line(args, message):
    given = [*SMALL, *args]
    result = bench(*given)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_each_command_has_examples():
    for command in ("data", "train"):
        result = subprocess.run(
            [sys.executable, str(ROOT / "tools/bench.py"), command, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0
        assert result.stdout.count(f"python tools/bench.py {command}") >= 2
