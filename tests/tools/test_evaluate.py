"""tools/evaluate.py: samples that go on where they stopped, reports, and mistakes named in one line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron.errors import ConfigError, DataError, MegatronError
from megatron.evaluation.isolation.sandbox import Sandbox, can_isolate
from megatron.evaluation.isolation.trial import Verdict
from megatron.evaluation.python_task import PythonTask
from megatron.evaluation.toolchain import TOOLCHAINS
from tests.convert.runs import ITERATION, make_run
from tools import evaluate as tool

TASKS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add{number}(x):\n    """Add."""\n',
        "entry_point": f"add{number}",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(2) == {2 + number}\n",
    }
    for number in range(3)
]

SETTINGS = {
    "benchmark": "mbpp", "model": "m", "num_samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8,
    "prefix": "", "seed": 0,
}  # fmt: skip


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "tasks.jsonl", TASKS)


def evaluate(*args: object) -> None:
    try:
        assert tool.main([str(arg) for arg in args]) == 0
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_samples_are_the_same_after_an_interruption(tasks: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", max_position_embeddings=64)
    path = tmp_path / "samples.jsonl"
    command = [
        "sample",
        "--load",
        tmp_path / "run",
        "--tasks-file",
        tasks,
        "--samples",
        path,
        "--cpu",
    ]
    command += ["--num-samples", 3, "--max-new-tokens", 6]
    evaluate(*command)
    lines = path.read_text().splitlines()
    assert len(lines) == 9
    path.write_text("\n".join(lines[:4]) + "\n" + lines[5][:-7])  # killed in the midst of a line
    evaluate(*command)
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    with pytest.raises(ConfigError, match="holds samples drawn with temperature 0"):
        evaluate(*command, "--temperature", 0.8)
    beside = tmp_path / "samples.jsonl.settings.json"
    settings = json.loads(beside.read_text())
    assert settings["iteration"] == ITERATION
    beside.write_text(json.dumps(settings | {"iteration": 7}))
    with pytest.raises(ConfigError, match="holds samples drawn with iteration 7; give the same"):
        evaluate(*command)
    beside.unlink()
    with pytest.raises(ConfigError, match="nothing says how they were drawn"):
        evaluate(*command)
    command[command.index(path)] = tmp_path / "other.jsonl"
    with pytest.raises(ConfigError, match=r"HumanEval/0: this model's .* is 64 tokens; the prompt"):
        evaluate(*command, "--max-new-tokens", 60)
    evaluate(*command)  # nothing was drawn with those


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_report_counts_what_passed_and_why_not(tasks: Path, tmp_path: Path, capsys) -> None:
    rows = []
    for row in TASKS:
        rows.append({"task_id": row["task_id"], "completion": row["canonical_solution"]})
        rows.append({"task_id": row["task_id"], "completion": "    return 0\n"})
    rows[1]["completion"] = "    while True: pass\n"
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    limits = [
        "--cpu-seconds",
        1,
        "--wall-seconds",
        300,
    ]  # by the clock, a slow machine passes nothing
    evaluate("score", "--samples", samples, "--tasks-file", tasks, "--workers", 2, *limits)
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "samples.report.json").read_text())
    assert report["pass_at"]["1"]["value"] == 0.5
    assert report["outcomes"] == {"passed": 3, "timeout-cpu": 1, "wrong": 2}
    assert report["num_timeouts"] == 1 and report["is_isolated"]
    assert (tmp_path / "samples.report.md").read_text() == printed.rstrip("\n") + "\n"
    evaluate("report", "--results", tmp_path / "samples.results.jsonl", "--tasks-file", tasks)
    assert capsys.readouterr().out == printed


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_a_file_that_lacks_samples_is_scored_in_part_where_that_is_asked_for(
    tasks: Path, tmp_path: Path, capsys
) -> None:
    rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in TASKS]
    samples = write_rows(tmp_path / "samples.jsonl", rows[:1] * 2 + rows[2:])
    command = ["score", "--samples", samples, "--tasks-file", tasks, "--workers", 1]
    with pytest.raises(DataError, match=r"1 of 3 tasks have no samples, HumanEval/1 .* --partial"):
        evaluate(*command)
    with pytest.raises(
        DataError, match=r"HumanEval/2 has 1 samples and HumanEval/0 2; .* --partial"
    ):
        evaluate(*command, "--tasks-file", write_rows(tmp_path / "two.jsonl", TASKS[::2]))
    capsys.readouterr()
    evaluate(*command, "--partial")
    printed, said = capsys.readouterr()
    assert (
        "2 of 3 tasks are left out, for they lack samples; HumanEval/2, for one, has 1 of 2" in said
    )
    assert "**In part: 2 of 3 tasks are left out" in printed and "Tasks: 1. Samples of each: 2." in printed  # fmt: skip
    report = json.loads((tmp_path / "samples.report.json").read_text())
    assert report["unfinished"] == {"HumanEval/1": 0, "HumanEval/2": 1}
    assert report["tasks"] == {"HumanEval/0": 2} and report["paper_pass_at_1"] == {}
    evaluate("report", "--results", tmp_path / "samples.results.jsonl", "--tasks-file", tasks)
    assert capsys.readouterr().out == printed


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_a_score_that_was_stopped_goes_on_and_runs_nothing_twice(
    tasks: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in TASKS]
    rows += [{"task_id": row["task_id"], "completion": "    return 0\n"} for row in TASKS]
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    command = ["score", "--samples", samples, "--tasks-file", tasks, "--workers", 1]
    ran: list[str] = []
    run = PythonTask.judge

    def judge(task: PythonTask, completion: str, *rest) -> Verdict:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(f"{task.name}{completion}")
        return run(task, completion, *rest)

    monkeypatch.setattr(PythonTask, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*command)
    journal = tmp_path / "samples.journal.jsonl"
    lines = journal.read_text().splitlines()
    assert 1 < len(lines) <= 5
    journal.write_text("\n".join(lines)[:-9])  # killed in the midst of a line
    known = len(lines) - 2
    before, ran[:] = ran[:known], ran[:0]
    monkeypatch.setattr(PythonTask, "judge", lambda *rest: (ran.append(f"{rest[0].name}{rest[1]}"), run(*rest))[1])  # fmt: skip
    evaluate(*command, "--wall-seconds", 7)  # of other settings: all anew
    assert len(ran) == 6 and not journal.exists()
    journal.write_text("\n".join(lines)[:-9])
    ran.clear()
    capsys.readouterr()
    evaluate(*command)
    assert len(ran) == 6 - known and not set(ran) & set(before) and not journal.exists()
    assert "| passed | 3 |" in capsys.readouterr().out


def test_infilling_goes_from_a_folder_to_a_report(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "run", max_position_embeddings=128)
    (tmp_path / "src").mkdir()
    for name in ("a.py", "b.py", "c.js"):
        (tmp_path / "src" / name).write_text(f"first = '{name}'\nsecond = first + first\n" * 8)
    tasks, samples = tmp_path / "tasks.jsonl", tmp_path / "samples.jsonl"
    evaluate("make-infilling", "--from-folder", tmp_path / "src", "--output", tasks)
    chosen = ["--benchmark", "infilling", "--tasks-file", tasks]
    command = ["sample", "--load", tmp_path / "run", "--samples", samples, "--cpu", *chosen]
    command += ["--preset", "greedy", "--max-new-tokens", 4, "--order", "spm"]
    evaluate(*command)
    assert len(samples.read_text().splitlines()) == 3
    with pytest.raises(ConfigError, match="samples drawn with order"):
        evaluate(*command[:-1], "psm")
    row = json.loads(samples.read_text().splitlines()[0])
    truth = {one["task_id"]: one["canonical_solution"] for one in map(json.loads, tasks.open())}
    kept = [line for line in samples.read_text().splitlines() if row["task_id"] not in line]
    row["completion"] = truth[row["task_id"]] + "\n"
    samples.write_text("\n".join([json.dumps(row), *kept]) + "\n")
    capsys.readouterr()
    evaluate("score", "--samples", samples, *chosen)
    report = json.loads((tmp_path / "samples.report.json").read_text())
    assert report["exact_match"] == report["pass_at"]["1"]["value"] == pytest.approx(1 / 3)
    group = row["task_id"].partition("/")[0]
    assert report["groups"][group]["exact_match"] in (0.5, 1.0)
    printed = capsys.readouterr().out
    evaluate("report", "--results", tmp_path / "samples.results.jsonl", *chosen)
    assert capsys.readouterr().out == printed
    with pytest.raises(ConfigError, match="--only has rs; allowed: js, py"):
        evaluate("score", "--samples", samples, *chosen, "--only", "rs")


def test_perplexity_is_written_and_is_that_of_the_model(tmp_path: Path) -> None:
    make_run(tmp_path / "run", max_position_embeddings=32)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def add(a, b):\n    return a + b\n" * 9)
    command = ["perplexity", "--load", tmp_path / "run", "--folder", tmp_path / "src", "--cpu"]
    evaluate(*command, "--context-lengths", 8, 32, "--output", tmp_path / "ppl")
    report = json.loads((tmp_path / "ppl.report.json").read_text())
    rows = report["groups"]["py"]
    assert set(rows) == {"8", "32"} and rows["8"]["num_bytes"] == rows["32"]["num_bytes"] == 9 * 32
    # weights drawn at random know next to nothing
    assert rows["32"]["perplexity"] == pytest.approx(280, rel=0.3)
    assert (tmp_path / "ppl.report.md").read_text().startswith("# Perplexity\n")
    with pytest.raises(ConfigError, match="allowed are 1 to the model's 32 positions"):
        evaluate(*command, "--context-lengths", 64)


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_languages_have_rows_beside_what_is_published(tmp_path: Path, capsys) -> None:
    sets = Path(__file__).parent.parent / "evaluation" / "sets"
    chosen = ["--benchmark", "multipl-e", "--tasks-file", sets / "multipl_e.jsonl"]
    evaluate("score", "--solutions", *chosen, "--only", "py", "sh")
    lines = capsys.readouterr().out.splitlines()
    assert "| sh | 1 | 100.0 | 100.0 to 100.0 | 10.46 |  |  |  |  |" in lines
    assert "| py | 1 | 100.0 | 100.0 to 100.0 | 33.57 | 30.35 | 28.37 | 21.5 | 15.17 |" in lines


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_a_language_that_lacks_a_library_is_refused_and_not_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking = dataclasses.replace(TOOLCHAINS["sh"], probe="echo no library >&2; exit 1\n")
    monkeypatch.setitem(TOOLCHAINS, "sh", lacking)  # type: ignore[arg-type]
    tasks = Path(__file__).parent.parent / "evaluation" / "sets" / "multipl_e.jsonl"
    command = ["score", "--solutions", "--benchmark", "multipl-e", "--tasks-file", tasks]
    with pytest.raises(ConfigError, match=r"in sh do not run on .*: no library; Debian: .*--only"):
        evaluate(*command, "--only", "sh")


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_solutions_score_all(tasks: Path, tmp_path: Path, capsys) -> None:
    evaluate("score", "--solutions", "--tasks-file", tasks, "--report", tmp_path / "own")
    printed = capsys.readouterr().out
    assert "| pass@1 | 100.0 |" in printed and "They are the benchmark's own solutions." in printed
    evaluate("report", "--results", tmp_path / "own.results.jsonl", "--tasks-file", tasks)
    assert capsys.readouterr().out == printed


def test_a_machine_without_isolation_is_refused_unless_told_in_so_many_words(
    tasks: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Sandbox._start

    def refuse(self: Sandbox, is_isolated: bool) -> None:
        if is_isolated:
            raise ConfigError("this machine does not let programs be isolated")
        start(self, is_isolated)

    monkeypatch.setattr(Sandbox, "_start", refuse)
    with pytest.raises(ConfigError, match="isolated"):
        evaluate("score", "--solutions", "--tasks-file", tasks)
    evaluate("score", "--solutions", "--tasks-file", tasks, "--i-accept-unsandboxed")
    assert "**Not isolated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        (["score", "--samples", "missing.jsonl"], DataError, "cannot be read"),
        (["score", "--solutions", "--limit", 0], ConfigError, "--limit is 0"),
        (["score", "--solutions", "--workers", 0], ConfigError, "--workers is 0"),
        (["score"], ConfigError, "required"),
        (["score", "--solutions", "--wall-second", 3], ConfigError, "did you mean --wall-seconds"),
    ],
)
def test_mistakes_are_named(
    tasks: Path, args: list, error: type[MegatronError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tasks.parent)
    with pytest.raises(error, match=said):
        evaluate(*args, *(["--tasks-file", tasks] if len(args) > 1 else []))


def test_what_would_be_lost_at_the_end_is_refused_before_anything_runs(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron.evaluation.command.score", lambda *rest, **more: pytest.fail("it ran"))  # fmt: skip
    few = write_rows(tmp_path / "few.jsonl", [{"task_id": "HumanEval/0", "completion": ""}])
    with pytest.raises(DataError, match="2 of 3 tasks have no samples"):
        evaluate("score", "--samples", few, "--tasks-file", tasks)
    command = ["score", "--solutions", "--tasks-file", tasks]
    with pytest.raises(ConfigError, match=r"--report .*nowhere is no folder that can be written"):
        evaluate(*command, "--report", tmp_path / "nowhere" / "py")
    write_rows(tmp_path / "few.jsonl.settings.json", [SETTINGS])
    with pytest.raises(ConfigError, match="is of mbpp, and --benchmark is humaneval; give"):
        evaluate("score", "--samples", few, "--tasks-file", tasks)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"task_id": "HumanEval/9", "completion": ""}], "HumanEval/9, which is no task"),
        ([{"task_id": "HumanEval/0", "completion": ""}], "2 of 3 tasks have no samples"),
        ([{"task_id": "HumanEval/0"}], "line 1: task_id and completion are texts"),
        ([{"task_id": "HumanEval/0", "completion": "", "sample": 0}] * 2, "line 2: sample 0"),
    ],
)
def test_samples_that_do_not_fit_are_named(
    tasks: Path, tmp_path: Path, rows: list[dict], said: str
) -> None:
    if not can_isolate():
        pytest.skip("no namespaces for users here")
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    with pytest.raises(DataError, match=said):
        evaluate("score", "--samples", samples, "--tasks-file", tasks)
