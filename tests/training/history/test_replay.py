"""A step computed again has the bits that the run recorded, and a machine that gives others is found."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist

from megatron.errors import CheckpointError, ConfigError
from megatron.parallel.launch import Launch
from megatron.training.history import replay as replaying
from megatron.training.history.replay import compare_replays, read_steps, replay, replay_times
from megatron.training.history.replay_plan import plan_replay
from tests.forked import run_forked
from tests.grid import grid_of
from tests.training.runs import flags_of, train_here

LAYOUTS = {
    "distributed optimizer, spikes": "--use-distributed-optimizer --loss-spike-policy skip "
    "--loss-spike-window 4",
    "pipeline, dropout, fp16": "--pipeline-model-parallel-size 2 --hidden-dropout 0.1 --fp16 "
    "--initial-loss-scale 1048576 --loss-scale-window 3",
}


def train_one(world, corpus, save, extra, size=2):
    flags = flags_of(
        corpus,
        save,
        f"--train-iters 7 --save-interval 3 --log-interval 2 --global-batch-size 4 --eval-interval 3 {extra}",
    )
    assert world(size).run(train_here, flags) == ["finished"] * size
    return save


def replay_here(rank: int, root, step: int, faulty_step: int | None = None) -> list[list[str]]:
    """Replay twice, the second time with a bit that flips on the last process; give findings and notes."""
    plan = plan_replay(root, step, dist.get_world_size())
    context, recorded = grid_of(plan.inputs.config.parallel), read_steps(root)
    first = replay(plan, context, recorded)
    queue = replaying.queue_step

    def flipping(run, size):
        if rank == dist.get_world_size() - 1 and run.progress.iteration + 1 == faulty_step:
            *_, weight = run.tensors.weights().values()
            weight.detach().to_local().view(torch.int32).view(-1)[0] ^= 1 << 18
        return queue(run, size)

    replaying.queue_step = flipping
    try:
        second = replay(plan, context, recorded)
    finally:
        replaying.queue_step = queue
    return [first.notes, first.findings, second.findings, compare_replays(2, first, second)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_replay_has_the_bits_of_the_run_and_a_flipped_bit_shows(world, corpus, tmp_path, layout):
    root = train_one(world, corpus, tmp_path / "run", LAYOUTS[layout])
    before = sorted(tmp_path.rglob("*")), (root / "metrics.jsonl").read_bytes()
    for step, saved in ((5, False), (3, True)):
        results = world(2).run(replay_here, root, step)
        assert results[0] == results[1]
        notes, *findings = results[0]
        assert findings == [[], [], []], findings
        assert any("tensors have the bits" in note for note in notes) is saved
        assert len(notes) - saved == sum(
            plan_replay(root, step, 2).first_step <= logged <= step for logged in (2, 4, 6, 7)
        )
    results = world(2).run(replay_here, root, 6, 5)
    assert results[0] == results[1]
    _, first, second, different = results[0]
    assert first == []
    assert second[0].startswith("step 6: loss ") and "in metrics.jsonl" in second[0]
    assert f"tensors differ from {root / 'iter_0000006'}: " in second[1]
    assert "replay 2 differs from the first in the numbers of step 6 and" in different[0]
    assert before == (sorted(tmp_path.rglob("*")), (root / "metrics.jsonl").read_bytes())


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    return train_one(world, corpus, tmp_path_factory.mktemp("trained") / "run", "", size=1)


def test_plan_starts_at_the_newest_checkpoint_before_the_step_or_where_the_run_did(trained):
    plans = {step: plan_replay(trained, step, 1) for step in (1, 3, 4, 6, 7, 9)}
    assert {step: plan.first_step for step, plan in plans.items()} == {
        1: 1, 3: 1, 4: 4, 6: 4, 7: 7, 9: 8
    }  # fmt: skip
    assert plans[3].start.folder is None and plans[3].stored == trained / "iter_0000003"
    assert plans[4].start.folder == trained / "iter_0000003" and plans[4].stored is None
    assert plans[7].consumed_samples == 24


def test_what_cannot_be_replayed_is_refused(trained, corpus, tmp_path):
    with pytest.raises(ConfigError, match="was trained by 1 processes at step 4 and this is 2"):
        plan_replay(trained, 4, 2)
    with pytest.raises(ConfigError, match="steps count from 1"):
        plan_replay(trained, 0, 1)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        plan_replay(tmp_path, 4, 1)
    launch, plan = Launch(), plan_replay(trained, 8, 1)
    with pytest.raises(ConfigError, match="recorded nothing of steps 8 to 8"):
        replay_times(plan, launch, 1, on_step=lambda: None)


def test_the_command_says_equal_or_different_by_its_exit_code(trained, tmp_path):
    def verify(root, *arguments):
        # of one thread, as the run was: on a CPU sums are grouped by it
        return run_forked("tools/verify.py", "replay", "--load", root, *arguments)

    result = verify(trained, "--step", "6", "--times", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"replayed steps 4 to 6 from {trained / 'iter_0000003'}"
    assert result.stdout.splitlines()[-2:] == ["replay 2 gave the same bits as the first", "equal"]
    other = shutil.copytree(trained, tmp_path / "run")
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["iteration"] == 4 and "grad_norm" in line:
            line["grad_norm"] *= 1 + 2**-50
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = verify(other, "--step", "6")
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines()[-2].startswith("step 4: loss ")
    assert result.stdout.splitlines()[-1] == "different"
