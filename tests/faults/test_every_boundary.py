"""A save that dies, or whose disk fails, at any change of a file: the checkpoint before it counts, and the next works."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from megatron.benchmark.fault_injection.fault import DEADLY, FAILING_DISK, Fault
from megatron.benchmark.fault_injection.life import possible_actions
from megatron.benchmark.fault_injection.nursery import Brood, Ends, Nursery
from megatron.checkpoint.layout import find_checkpoint
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save import save_checkpoint
from megatron.errors import CheckpointError
from tests.faults.saving import tensors

LIMIT_SECONDS = 300
OLD = 1
SCENARIOS = {"beside an older one": 2, "in place of the same iteration": OLD}


def _run_saves(nursery: Nursery, cases: list[dict], folder: Path) -> tuple[Ends, list[str]]:
    outputs = [str(folder / f"output-{number}.txt") for number in range(len(cases))]
    ends = nursery.run(Brood("tests.faults.saving:save", cases, outputs, LIMIT_SECONDS))
    return ends, [Path(output).read_text() for output in outputs]


def _case(root: Path, iteration: int, fault: Fault | None, **more: object) -> dict:
    fields = dataclasses.asdict(fault) if fault else None
    journal = f"{root}.journal"
    return {"root": str(root), "iteration": iteration, "fault": fields, "journal": journal, **more}


def _make_root(root: Path) -> Path:
    save_checkpoint(root, OLD, tensors(OLD), state={"iteration": OLD}, config={"seed": 1})
    return root


def _faults(nursery: Nursery, folder: Path, iteration: int) -> list[Fault]:
    """Every moment of a save on a file, with all that can happen then."""
    root = _make_root(folder / "recorded")
    ends, _ = _run_saves(nursery, [_case(root, iteration, None, records=True)], folder)
    assert ends.codes == [0]
    notes = [json.loads(line) for line in Path(f"{root}.journal").read_text().splitlines()]
    seen: Counter[str] = Counter()
    faults = []
    for moment in (note["moment"] for note in notes if note["kind"] == "moment"):
        seen[moment] += 1
        if moment == "end":
            faults.append(Fault(moment, 1, "kill"))
        elif Fault(moment, 1, "kill").is_on_disk:
            actions = [*DEADLY, *FAILING_DISK]
            faults += [
                Fault(moment, seen[moment], action)
                for action in possible_actions(moment, 1)
                if action in actions
            ]
    return faults


def _loaded(root: Path) -> int:
    """Read the checkpoint that counts, all of it, and give its iteration."""
    reader = CheckpointReader.open(find_checkpoint(root))
    wanted = tensors(reader.iteration)
    assert reader.names() == sorted(wanted)
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in wanted.items())
    assert reader.state == {"iteration": reader.iteration}
    return reader.iteration


def _problem(root: Path, fault: Fault, iteration: int, code: int, output: str) -> str | None:
    """Say what is wrong with what a save left, None if nothing is."""
    try:
        loaded = _loaded(root)
    except (CheckpointError, AssertionError) as error:
        return f"nothing loads: {error}"
    if loaded not in (OLD, iteration):
        return f"iteration {loaded} counts"
    if code == 0 and loaded != iteration:
        return "the save succeeded and does not count"
    if fault.action in FAILING_DISK:
        # code 0: what failed did not matter, such as taking away what is not there
        if code and (code != 2 or output.count("\n") != 1 or "Traceback" in output):
            return f"exit code {code}: {output[-300:]}"
    elif code != -9:
        return f"exit code {code}: {output[-300:]}"
    return None


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_loads_after_a_fault_at_any_moment_and_the_next_save_cleans_up(
    nursery, tmp_path, scenario
):
    iteration = SCENARIOS[scenario]
    faults = _faults(nursery, tmp_path, iteration)
    assert len(faults) > 80
    original = _make_root(tmp_path / "original")
    roots = [shutil.copytree(original, tmp_path / f"root-{n}") for n in range(len(faults))]
    cases = [_case(root, iteration, fault) for root, fault in zip(roots, faults, strict=True)]
    ends, outputs = _run_saves(nursery, cases, tmp_path)
    assert ends.orphans == [] and ends.hung == []
    results = zip(roots, faults, ends.codes, outputs, strict=True)
    found = {
        str(fault): _problem(root, fault, iteration, code, output)
        for root, fault, code, output in results
    }
    assert {fault: problem for fault, problem in found.items() if problem} == {}

    for root in roots:
        save_checkpoint(root, 3, tensors(3), state={"iteration": 3}, config={"seed": 1})
        assert _loaded(root) == 3
        names = {path.name for path in root.iterdir()} - {"iter_0000002"}
        assert names == {"iter_0000001", "iter_0000003", "latest_checkpointed_iteration.txt"}


@pytest.mark.parametrize(
    ("breaks", "action"),
    [("folders are not synced", "lose older names"), ("tracker before folder", "kill")],
)
def test_a_save_that_is_wrong_is_seen(nursery, tmp_path, breaks, action):
    faults = [fault for fault in _faults(nursery, tmp_path, 2) if fault.action == action]
    roots = [_make_root(tmp_path / f"root-{number}") for number in range(len(faults))]
    pairs = list(zip(roots, faults, strict=True))
    cases = [_case(root, 2, fault, breaks=breaks) for root, fault in pairs]
    ends, outputs = _run_saves(nursery, cases, tmp_path)
    problems = [
        _problem(root, fault, 2, code, output)
        for (root, fault), code, output in zip(pairs, ends.codes, outputs, strict=True)
    ]
    assert any(problem and "nothing loads" in problem for problem in problems)
