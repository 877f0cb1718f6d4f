"""A seeded sample of hostile input: refused in one line with exit code 2, or harmless. tests/hostile/fuzz.py runs more."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.data.indexed_dataset import idx_path
from megatron.errors import DataError
from tests.hostile import commands, guard
from tests.hostile.commands import TOOLS, dry_run, run_flags
from tests.hostile.fuzz import attack, prepare
from tests.hostile.guard import judge, run_guarded
from tests.hostile.subjects import SUBJECTS
from tests.world import launcher_environment

NUMBERS = range(3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_hostile_input_is_refused_in_one_line_or_harmless(base, tmp_path, subject):
    for number in NUMBERS:
        for result in attack(base, tmp_path / "work", subject, number):
            assert not result.outcome.is_finding, (
                f"python -m tests.hostile.fuzz --subject {subject.name!r} --seed {number} --mutations 1: "
                f"{result.command.tool} {result.command.argv}: {result.outcome.text}"
            )


def test_what_is_not_attacked_is_accepted(base, tmp_path):
    """Else every refusal of a mutation would prove nothing."""
    work = tmp_path / "work"
    shutil.copytree(base, work)
    uses = [
        commands.verify(work),
        dry_run(run_flags(work, ["--exclude-documents", f"{work}/optout.jsonl"])),
        dry_run(run_flags(work, ["--config", f"{work}/preset.yaml"])),
        commands.merge(work),
        *(
            commands.preprocess(work, name)
            for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet")
        ),
        commands.Command("convert_from_hf", ["--load", f"{work}/hf", "--save", f"{work}/run"]),
        commands.Command(
            "convert_from_hf", ["--load", f"{work}/sharded", "--save", f"{work}/run2"]
        ),
    ]
    for command in uses:
        outcome = run_guarded(commands.call_tool(command.tool), command.argv, command.check)
        assert outcome.kind == "accepted", (command, outcome)


def _raise(error):
    def tool(argv):
        raise error

    return tool


def test_the_guard_sees_what_it_is_for(monkeypatch):
    assert run_guarded(_raise(DataError("a\nb")), []).kind == "refused"
    assert "KeyError: 1" in run_guarded(_raise(KeyError(1)), []).text
    assert run_guarded(_raise(RecursionError()), []).is_finding
    assert (
        "died of SIGSEGV" in run_guarded(lambda argv: os.kill(os.getpid(), signal.SIGSEGV), []).text
    )
    assert "MemoryError" in run_guarded(lambda argv: len(bytes(2 << 30)), []).text
    assert "MB of memory" in run_guarded(lambda argv: len(b"a" * (200 << 20)) * 0, []).text
    assert run_guarded(lambda argv: 0, [], lambda: "wrong") == guard.Outcome("finding", "wrong")
    assert run_guarded(lambda argv: 1, []).is_finding
    assert judge(2, "t.py: error: a\nt.py: error: b\n", "t.py: error: ").is_finding
    assert judge(2, "something\nt.py: error: a\n", "t.py: error: ").is_finding
    monkeypatch.setattr(guard, "SECONDS", 1)
    assert "a hang" in run_guarded(lambda argv: signal.pause(), []).text


@pytest.mark.parametrize(
    ("damage", "flags"),
    [
        (lambda base: Path(idx_path(base / "py_text_document")).write_bytes(b"MMIDIDX\0\0" + b"\xff" * 60), []),
        (lambda base: (base / "tokenizer.json").write_text("[" * 100_000), []),
        (lambda base: (base / "preset.yaml").write_text("lr: " + "1" * 5000), ["--config", "{}/preset.yaml"]),
        (lambda base: None, ["--hidden-size", "9" * 5000]),
    ],
    ids=["index", "tokenizer", "preset", "flag"],
)  # fmt: skip
def test_the_command_itself_ends_in_one_line_and_code_2(base, tmp_path, damage, flags):
    work = tmp_path / "work"
    shutil.copytree(base, work)
    damage(work)
    flags = ["--dry-run", *run_flags(work, [flag.format(work) for flag in flags])]
    environment = launcher_environment() | {"PYTHONPATH": str(TOOLS.parent)}
    result = subprocess.run(
        [sys.executable, TOOLS / "pretrain_gpt.py", *flags], capture_output=True, text=True, env=environment
    )  # fmt: skip
    outcome = judge(result.returncode, result.stderr, "pretrain_gpt.py: error: ")
    assert outcome.kind == "refused", outcome
