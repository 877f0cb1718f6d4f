"""Preflight: two processes that pass for two nodes are told apart from nodes where something is wrong."""

import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from megatron.parallel import collectives
from megatron.parallel.launch import Launch
from megatron.preflight import checks, node, tiny_run
from megatron.preflight.checks import Preflight, all_checks
from megatron.preflight.finding import Finding, same_everywhere, to_json
from megatron.preflight.network import Link
from megatron.training.inputs import open_inputs
from tests.grid import grid_of
from tests.training.corpus import Corpus
from tests.training.runs import flags_of, parse
from tests.world import Worlds

CHECKS = {  # what finds a damage, alone
    "versions": checks.check_versions,
    "data": checks.check_files,
    "disk": checks.check_disks,
    "collective": checks.check_tiny_run,
}


def damaged(name: str) -> Any:
    """Make one thing of this process's node wrong."""
    if name == "versions":
        other = node.versions() | {"torch": "2.0"}
        return mock.patch.object(node, "versions", lambda: other)
    if name == "data":
        return mock.patch.object(node, "sampled_hash", lambda path: "other")
    if name == "disk":
        return mock.patch.object(node, "free_bytes", lambda folder: 5)
    if name == "collective":
        true = collectives._all_reduced
        return mock.patch.object(
            collectives, "_all_reduced", lambda x, group: true(x, group) * 1.05
        )
    return nullcontext()


def preflight_of(rank: int, flags: str, damage: str) -> list[Finding]:
    inputs = open_inputs(parse(flags), dist.get_world_size())
    launch = Launch(rank=rank, local_rank=0, world_size=dist.get_world_size())
    preflight = Preflight(inputs, launch, grid_of(inputs.config.parallel), f"n{rank}")
    with damaged(damage if rank == 1 or damage == "collective" else ""):
        if damage in CHECKS:
            return CHECKS[damage](preflight)
        return [finding for found in all_checks(preflight) for finding in found]


def test_whole_nodes_pass_and_nothing_is_left(
    world: Worlds, corpus: Corpus, tmp_path: Path
) -> None:
    flags = flags_of(corpus, tmp_path, "--tensor-model-parallel-size 2 --sequence-parallel")
    findings, others = world(2).run(preflight_of, flags, "")
    assert others == []
    assert [item for item in findings if item.level == "FAIL"] == []
    checked = {item.check for item in findings}
    assert {"torch", "train.bin", "shared folder", "disk space", "resume", "one process"} <= checked
    assert any(check.startswith("network") for check in checked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "check", "where"),
    [
        ("versions", "torch", ("n1",)),
        ("data", "train.bin", ("n1",)),
        ("disk", "disk space", None),
        ("collective", "one process", ()),
    ],
)
def test_what_is_wrong_is_named(
    world: Worlds, corpus: Corpus, tmp_path: Path, damage: str, check: str, where: tuple[str] | None
) -> None:
    flags = flags_of(corpus, tmp_path, "--tensor-model-parallel-size 2")
    findings, _ = world(2).run(preflight_of, flags, damage)
    (finding,) = [item for item in findings if item.level == "FAIL" and item.check == check]
    assert where is None or finding.where == where
    assert finding.what_to_do and len(finding.lines()) == 2
    assert to_json(findings)["passed"] is False


def train_tiny(rank: int, flags: str, save: Path) -> int:
    config = tiny_run.tiny(parse(flags), dist.get_world_size(), save)
    tiny_run.train_here(config, grid_of(config.parallel))
    return config.model.num_layers


@pytest.mark.parametrize(
    ("layout", "num_layers"),
    [
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", 4),
        ("--pipeline-model-parallel-size 2 --account-for-loss-in-pipeline-split --num-layers 9", 1),
        ("--use-distributed-optimizer --attention-head-type multihead", 1),
    ],
)
def test_a_tiny_model_has_the_layout_of_the_run(
    world: Worlds, corpus: Corpus, tmp_path: Path, layout: str, num_layers: int
) -> None:
    flags = flags_of(corpus, tmp_path / "run", layout)
    assert world(2).run(train_tiny, flags, tmp_path / "tiny") == [num_layers] * 2
    assert len(tiny_run.losses(tmp_path / "tiny")) == tiny_run.NUM_STEPS


def test_those_that_differ_from_most_are_named() -> None:
    finding = same_everywhere("torch", {"a": "1", "b": "2", "c": "1"}, "do")
    assert finding == Finding("FAIL", "torch", "1 on 2 of 3; 2 on b", "do", ("b",))


def test_a_slow_group_is_named_with_its_hosts() -> None:
    links = [
        Link("tp", (first, first + 1), 1e-5, speed)
        for first, speed in ((0, 1e9), (2, 9e9), (4, 9e9))
    ]
    finding = checks._judge_axis("tp", links, ["a", "a", "b", "b", "c", "c"])
    assert finding.level == "WARN" and finding.where == ("ranks 0, 1 on a",)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"side_effect": subprocess.TimeoutExpired("nvidia-smi", 60)}, "gave no answer in 60 s"),
        ({"return_value": subprocess.CompletedProcess([], 9, "", "")}, "exit code 9"),
        ({"return_value": subprocess.CompletedProcess([], 6, "No devices\n", "")}, "No devices"),
    ],
)
def test_a_driver_that_does_not_answer_is_told_and_ends_nothing(
    answer: dict[str, Any], expected: str
) -> None:
    with (
        mock.patch.object(node.shutil, "which", lambda name: name),
        mock.patch.object(node.subprocess, "run", **answer),
    ):
        (gpu,) = node.gpus()
    assert expected in gpu["error"]


def test_a_driver_that_has_renamed_what_tells_of_health_still_tells_the_rest() -> None:
    unknown = 'Field "clocks_throttle_reasons.hw_slowdown" is not a valid field to query.'

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if any("hw_slowdown" in word for word in command):
            return subprocess.CompletedProcess(command, 2, unknown, "")
        return subprocess.CompletedProcess(command, 0, "NVIDIA H200, 143771, 4, 999.1\n", "")

    with (
        mock.patch.object(node.shutil, "which", lambda name: name),
        mock.patch.object(node.subprocess, "run", answer),
    ):
        (gpu,) = node.gpus()
    assert gpu["name"] == "NVIDIA H200" and gpu["driver_version"] == "999.1"
    assert not any(check(gpu) for check in (checks._is_busy, checks._has_errors, checks._is_slowed))
