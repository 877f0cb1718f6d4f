"""tools/plot_loss.py: reads what a run writes, draws it, and says what is wrong with what it cannot read."""

import json
from pathlib import Path

import pytest

from megatron.errors import DataError
from tools import plot_loss as tool


def write_metrics(path: Path, num_steps: int = 20) -> Path:
    lines = []
    for step in range(0, num_steps + 1, 5):
        for name, start in (("python", 8.5), ("cpp", 8.0)):
            lines.append(
                {"iteration": step, "validation": name, "lm_loss": start - 0.2 * step, "ppl": 1.0}
            )
        if step:
            lines.append({"iteration": step, "source": "train/python", "samples": step})
            lines.append({"iteration": step, "lm_loss": 8.2 - 0.2 * step, "grad_norm": 1.0})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*args: object) -> int | None:
    return tool.main([str(arg) for arg in args])


def test_draws_a_picture_and_says_how_far_each_set_fell(tmp_path: Path, capsys) -> None:
    metrics = write_metrics(tmp_path / "run" / "metrics.jsonl")
    picture = tmp_path / "new" / "loss.png"
    run("--metrics", metrics, "--output", picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in picture.parent.iterdir()] == ["loss.png"]
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "python 8.500 at iteration 0 -> 4.500 at 20 (-4.000 nats)"
    assert " ".join(lines[1].split()) == "cpp 8.000 at iteration 0 -> 4.000 at 20 (-4.000 nats)"


def test_two_runs_in_one_picture(tmp_path: Path, capsys) -> None:
    runs = [write_metrics(tmp_path / name / "metrics.jsonl") for name in ("first", "second")]
    run("--metrics", *runs, "--output", tmp_path / "both.svg")
    picture = (tmp_path / "both.svg").read_text()
    assert picture.lstrip().startswith("<?xml")
    summary = capsys.readouterr().out
    assert "first:" in summary and "second:" in summary


def test_a_torn_last_line_is_passed_over_and_a_rewritten_step_counts_once(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl")
    with metrics.open("a") as stream:
        stream.write(json.dumps({"iteration": 20, "lm_loss": 1.25}) + "\n")
        stream.write(json.dumps({"iteration": 25, "lm_loss": None}) + "\n")
        stream.write(json.dumps({"iteration": 25, "rollback_from": 28}) + "\n")
        stream.write('{"iteration": 30, "lm_l')
    curves = tool.read_curves(metrics)
    assert curves.train == pytest.approx({5: 7.2, 10: 6.2, 15: 5.2, 20: 1.25})
    assert set(curves.validation) == {"python", "cpp"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "holds no loss yet"),
        ("hello\n{}\n", "line 1 is no record"),
        ('{"iteration": 1, "lm_loss": null}\n', "holds no loss yet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    if content is not None:
        metrics.write_text(content)
    with pytest.raises(DataError, match=message):
        run("--metrics", metrics, "--output", tmp_path / "loss.png")


def test_an_unknown_picture_format_is_named(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl")
    for name in ("loss.xyz", "loss"):
        with pytest.raises(DataError, match=rf"--output .*/{name} ends in none of .*\.png"):
            run("--metrics", metrics, "--output", tmp_path / name)
