"""tools/forgetting.py: each set is judged by itself, noise trips nothing, and exit code 3 says that something is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron.errors import ConfigError, DataError
from megatron.evaluation.benchmark import load_benchmark
from megatron.evaluation.isolation.trial import Verdict
from megatron.evaluation.report import make_report
from megatron.evaluation.sample import Sample
from megatron.evaluation.score import Result
from tools import forgetting as tool

NUM_SAMPLES = 20


def run(*args: object) -> int:
    return tool.main([str(arg) for arg in args])


def metrics(path: Path, *validations: dict[str, float | None]) -> Path:
    lines = [{"iteration": 1, "lm_loss": 3.0, "grad_norm": 1.0}]
    for number, losses in enumerate(validations):
        lines += [
            {"iteration": 10 * number, "validation": name, "lm_loss": loss, "ppl": 1.0}
            for name, loss in losses.items()
        ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 9, "val')
    return path


def report(path: Path, rates: dict[str, float], num_tasks: int = 100, **changes) -> Path:
    """A report of MultiPL-E whose tasks are right at about these rates."""
    draw = np.random.default_rng(len(path.name))
    tasks = {
        f"{group}/task_{i}": int(draw.binomial(NUM_SAMPLES, rate))
        for group, rate in rates.items()
        for i in range(num_tasks)
    }
    settings = {"model": str(path), "seed": 3, "temperature": 0.2}
    content = {
        "benchmark": "multipl-e",
        "num_samples": NUM_SAMPLES,
        "settings": settings,
        "groups": {
            group: {"tasks": [task for task in tasks if task.startswith(f"{group}/")]}
            for group in rates
        },
        "tasks": tasks,
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_a_language_that_falls_fails_though_the_mean_of_all_rises(tmp_path, capsys) -> None:
    before = {"python": 5.272, "cpp": 5.042, "cpp+fim": 5.0}
    middle = {"python": 5.0, "cpp": 9.0, "cpp+fim": 9.0}
    after = {"python": 3.177, "cpp": 5.278, "cpp+fim": 5.1}
    file = metrics(tmp_path / "metrics.jsonl", before, middle, after)
    assert run("--metrics", file, "--output", tmp_path / "new" / "report") == tool.EXIT_FORGOTTEN
    printed = capsys.readouterr()
    assert "FORGOTTEN: cpp lost more" in printed.err
    assert "| cpp | 5.042 | 5.278 | +0.236 (+4.7 %) | **forgotten** |" in printed.out
    assert (tmp_path / "new" / "report.md").read_text() in printed.out
    found = json.loads((tmp_path / "new" / "report.json").read_text())
    verdicts = {row["name"]: row["verdict"] for row in found["changes"]}
    assert found["verdict"] == "forgotten"
    assert verdicts == {"python": "kept", "cpp": "forgotten", "cpp+fim": "kept"}
    assert run("--metrics", file, "--max-loss-rise", 5) == 0
    assert run("--metrics", file, "--waive", "cpp") == 0
    assert "| waived |" in capsys.readouterr().out


def test_two_runs_are_compared_at_their_ends(tmp_path) -> None:
    one = metrics(tmp_path / "a.jsonl", {"ruby": 9.0}, {"ruby": 2.0})
    two = metrics(tmp_path / "b.jsonl", {"ruby": 1.0}, {"ruby": 2.05})
    assert run("--metrics", one, two) == 0  # + 2.5 %
    assert run("--metrics", one, two, "--max-loss-rise", 2) == tool.EXIT_FORGOTTEN
    nothing = metrics(tmp_path / "c.jsonl", {"ruby": 0.0})
    assert run("--metrics", nothing, two) == tool.EXIT_FORGOTTEN


def test_a_set_that_came_late_is_named(tmp_path, capsys) -> None:
    file = metrics(
        tmp_path / "a.jsonl", {"py": 2.0}, {"py": 2.0, "rb": 2.0}, {"py": 2.0, "rb": 2.0}
    )
    assert run("--metrics", file) == 0
    assert "rb was validated from step 10 on, and others from 0" in capsys.readouterr().out


def test_a_loss_that_is_no_number_any_more_is_a_loss(tmp_path) -> None:
    file = metrics(tmp_path / "a.jsonl", {"ruby": 2.0}, {"ruby": None})
    assert run("--metrics", file, "--output", tmp_path / "r") == tool.EXIT_FORGOTTEN
    assert json.loads((tmp_path / "r.json").read_text())["changes"][0]["after"] is None


def test_the_fall_that_starcoder_did_not_see_is_seen(tmp_path, capsys) -> None:
    # pass@1 of StarCoderBase and StarCoder, from the authors' leaderboard
    before = report(tmp_path / "base.json", {"py": 0.304, "rb": 0.173, "rkt": 0.118, "js": 0.317})
    after = report(tmp_path / "tuned.json", {"py": 0.336, "rb": 0.012, "rkt": 0.001, "js": 0.308})
    assert run("--before", before, "--after", after) == tool.EXIT_FORGOTTEN
    assert "FORGOTTEN: multipl-e/rb, multipl-e/rkt lost more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("benchmark", "groups"),
    [("ds1000", ["Matplotlib", "Numpy", "Pandas"]), ("multipl-e", ["rb", "sh"])],
)
def test_reports_are_read_as_evaluation_writes_them(tmp_path, benchmark, groups) -> None:
    name = {"ds1000": "ds1000.jsonl", "multipl-e": "multipl_e.jsonl"}[benchmark]
    file = Path(__file__).parents[1] / "evaluation" / "sets" / name
    tasks = [task for task in load_benchmark(benchmark, [file]) if task.group in groups]
    for prefix, outcome in (("before", "passed"), ("after", "wrong")):
        results = [Result(Sample(task.name, 0, ""), Verdict(outcome, "", 0.1)) for task in tasks]
        report = make_report(benchmark, tasks, results, None, is_isolated=True)
        (tmp_path / f"{prefix}.json").write_text(json.dumps(report))
    files = ["--before", tmp_path / "before.json", "--after", tmp_path / "after.json"]
    assert run(*files, "--output", tmp_path / "r") == tool.EXIT_FORGOTTEN
    rows = json.loads((tmp_path / "r.json").read_text())["changes"]
    found = {row["name"]: (row["before"], row["after"]) for row in rows}
    assert found == {f"{benchmark}/{group}": (100, 0) for group in groups}


def test_chance_does_not_trip_it(tmp_path) -> None:
    """Three tasks of forty that are lost by luck: 4 points or so, within the interval."""
    tasks = {f"t{i}": (NUM_SAMPLES if i % 3 else 0) for i in range(40)}
    worse = tasks | {"t1": 0, "t2": 0, "t4": 0, "t0": NUM_SAMPLES}
    shape = {"groups": {}, "benchmark": "humaneval"}
    before = report(tmp_path / "a.json", {}, tasks=tasks, **shape)
    after = report(tmp_path / "b.json", {}, tasks=worse, **shape)
    assert run("--before", before, "--after", after, "--output", tmp_path / "r") == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["changes"]
    assert row["after"] - row["before"] == pytest.approx(-5) and row["low"] < -5 < row["high"]
    assert row["high"] >= 0
    all_lost = report(tmp_path / "c.json", {}, tasks=dict.fromkeys(tasks, 0), **shape)
    assert run("--before", before, "--after", all_lost) == tool.EXIT_FORGOTTEN


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ([], ConfigError, "nothing to compare"),
        (["--metrics", "{one}"], DataError, "holds one validation of each set"),
        (["--metrics", "{two}", "{other}"], DataError, "has no loss of ruby"),
        (["--metrics", "{two}", "--waive", "cobol"], ConfigError, "names nothing that is compared"),
        (["--metrics", "{none}"], DataError, "holds no validation"),
        (["--metrics", "nowhere"], DataError, "cannot be read"),
        (["--metrics", "{two}", "--max-loss-rise", "-1"], ConfigError, "allowed: from 0"),
        (["--before", "{report}"], ConfigError, "give both"),
        (["--before", "{report}", "--after", "{one}"], DataError, "is no report"),
        (["--before", "{report}", "--after", "{fewer}"], DataError, "evaluate the same benchmarks"),
        (["--before", "{report}", "--after", "{warm}"], DataError, "was sampled with"),
        (["--before", "{report}", "--after", "{short}"], DataError, "evaluate the same tasks"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, args, error, words) -> None:
    rates = {"py": 0.5, "rb": 0.5}
    files = {
        "one": metrics(tmp_path / "one.jsonl", {"ruby": 2.0}),
        "two": metrics(tmp_path / "two.jsonl", {"ruby": 2.0}, {"ruby": 2.0}),
        "other": metrics(tmp_path / "other.jsonl", {"perl": 2.0}),
        "none": metrics(tmp_path / "none.jsonl"),
        "report": report(tmp_path / "report.json", rates),
        "fewer": report(tmp_path / "fewer.json", {"py": 0.5}),
        "warm": report(tmp_path / "warm.json", rates, settings={"temperature": 0.8}),
        "short": report(tmp_path / "short.json", rates, 99),
    }
    with pytest.raises(error, match=words):
        run(*(arg.format(**files) for arg in args))
