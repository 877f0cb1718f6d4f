"""Backward passes in two halves: gradients add up in fp32, and recomputation is paid for once.

And what a step leaves in memory.
"""

import gc
from unittest import mock

import pytest
import torch
from torch.distributed.pipelining import PipelineStage, stage
from torch.torch_version import TorchVersion

from megatron.model.transformer import TransformerLayer
from megatron.training import pretrain
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from tests.grid import grid_of
from tests.training.runs import flags_of, parse, read_metrics, train_here

PP2 = "--pipeline-model-parallel-size 2 --train-iters 4 --eval-iters 0"
IN_V = [f"{PP2} --pipeline-schedule {schedule}" for schedule in ("zbv", "dualpipev")]


def norms_of(world, corpus, save, flags):
    """The gradient norms of a run of four steps on two processes."""
    world(2).run(train_here, flags_of(corpus, save, flags))
    training, _ = read_metrics(save)
    return [row["grad_norm"] for row in training.values()]


@pytest.fixture(scope="module")
def norms_of_1f1b(world, corpus, tmp_path_factory):
    """Those of a schedule that never splits a backward pass, in bf16."""
    return norms_of(world, corpus, tmp_path_factory.mktemp("1f1b"), f"{PP2} --bf16")


@pytest.mark.parametrize("flags", IN_V)
def test_bf16_gradients_of_micro_batches_are_summed_in_fp32(
    world, corpus, norms_of_1f1b, tmp_path, flags
):
    # summed in bf16 they are 1e-4 off
    norms = norms_of(world, corpus, tmp_path, f"{flags} --bf16")
    assert norms == pytest.approx(norms_of_1f1b, rel=1e-9)


def count_layers(rank, flags):
    """Train, and give how often layers ran forward."""
    calls = []

    class Counted(TransformerLayer):
        def forward(self, *args):
            calls.append(1)
            return super().forward(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron.model.gpt.TransformerLayer", Counted)
        train_here(rank, flags)
    return len(calls)


@pytest.mark.parametrize("flags", IN_V)
def test_full_recomputation_runs_a_layer_twice(world, corpus, tmp_path, flags):
    full = flags_of(corpus, tmp_path, f"{flags} --recompute-granularity full")
    num_steps, num_micro_batches, num_layers = 4, 8, 2  # of each process
    assert world(2).run(count_layers, full) == [2 * num_steps * num_micro_batches * num_layers] * 2


def count_hidden_states(rank, flags):
    """Give how many hidden states are alive after steps of 4, 8 and again 4 micro-batches."""
    inputs = open_inputs(parse(flags), 2)
    run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
    counts = []
    for size in (4, 8, 4):
        run.parts.pipeline.forward_backward(run.loader.batch(0, size), 1.0)
        gc.collect()
        alive = {
            tensor.untyped_storage().data_ptr()
            for tensor in gc.get_objects()
            if type(tensor) is torch.Tensor and tensor.shape == (32, 1, 32)
        }
        counts.append(len(alive))
    run.close()
    return counts


@pytest.mark.parametrize("flags", [PP2, *IN_V])
def test_a_step_of_another_size_leaves_nothing_behind(world, corpus, tmp_path, flags):
    for first, _, again in world(2).run(count_hidden_states, flags_of(corpus, tmp_path, flags)):
        assert again == first
        assert first > 0 or torch.__version__ >= "2.15"  # which lets go of all at the end of a step


def losses_after(rank, flags, is_validated):
    """Give the losses of two steps, after a validation of as many micro-batches or without one."""
    inputs = open_inputs(parse(flags), 2)
    run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
    batch = run.loader.batch(0, 4)
    if is_validated:
        run.parts.pipeline.evaluate(batch)
    losses = [run.parts.pipeline.forward_backward(batch, 1.0).item() for _ in range(2)]
    gradients = [p.grad.full_tensor() for p in run.saver._tensors.parameters.values()]
    run.close()
    return losses, [gradient.norm().item() for gradient in gradients]


@pytest.mark.parametrize("flags", [PP2, *IN_V])
def test_a_step_after_a_validation_of_its_size_is_the_step_without(world, corpus, tmp_path, flags):
    flags = flags_of(corpus, tmp_path, flags)
    expected = world(2).run(losses_after, flags, False)
    assert world(2).run(losses_after, flags, True) == expected


def losses_of_other_weights(rank, size, flags):
    """Validate, let weights come from elsewhere, as from a checkpoint, and validate again, train, and validate."""
    inputs = open_inputs(parse(flags), size)
    run = build_run(inputs, plan_start(inputs, size), grid_of(inputs.config.parallel))
    batch, losses = run.loader.batch(0, 4), []
    for number in range(3):
        losses.append(run.parts.pipeline.evaluate(batch).item())
        if number == 0:
            with torch.no_grad():
                for parameter in run.saver._tensors.parameters.values():
                    parameter.zero_()
        if number == 1:
            losses.append(run.parts.pipeline.forward_backward(batch, 1.0).item())
    run.close()
    return losses


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (1, "--bf16 --eval-iters 0"),
        (2, f"{PP2} --bf16"),
        (2, "--bf16 --eval-iters 0"),
        (2, "--bf16 --eval-iters 0 --use-distributed-optimizer"),
    ],
)
def test_a_pass_after_a_validation_sees_weights_that_were_loaded_in_between(
    world, corpus, tmp_path, size, flags
):
    flags = flags_of(corpus, tmp_path, flags)
    for before, *after in world(size).run(losses_of_other_weights, size, flags):
        assert len(set(after)) == 1 and (before not in after or before == 0)


def step_by(rank, flags, version):
    """Take a step with a torch of this version; give what was said of halves, and whether any came late."""
    inputs = open_inputs(parse(flags), 2)
    with (
        mock.patch("torch.__version__", TorchVersion(version)),
        mock.patch.object(pretrain.logger, "info") as say,
        mock.patch.object(
            stage, "stage_backward_weight", wraps=stage.stage_backward_weight
        ) as late,
    ):
        run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
        run.parts.pipeline.forward_backward(run.loader.batch(0, run.batches.size(0)), 1.0)
        run.close()
    said = [call.args[0] for call in say.call_args_list if "both halves" in call.args[0]]
    return said, late.called


def test_a_run_says_where_torch_cannot_split_its_backward_passes_and_does_not(
    world, corpus, tmp_path
):
    flags = flags_of(corpus, tmp_path, IN_V[0])
    for lines, is_split in world(2).run(step_by, flags, "2.12.1"):
        assert len(lines) == 1 and "zbv: torch 2.12.1 computes both halves" in lines[0]
        assert not is_split
    if torch.__version__ >= "2.13":  # the one that is installed has to be able to
        assert world(2).run(step_by, flags, "2.13.0") == [([], True)] * 2
    flags = flags_of(corpus, tmp_path, PP2)
    assert world(2).run(step_by, flags, "2.12.1") == [([], False)] * 2


def ranks_met(rank, flags):
    """The ranks that this one's stages send to or hear from before the first step, with torch 2.11 or later."""
    inputs = open_inputs(parse(flags), 2)
    run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
    stages = run.parts.pipeline._schedule_of(4, train=True)._stages
    run.close()
    return [one.group_peer for stage in stages for one in stage._get_init_p2p_neighbors_ops()]


@pytest.mark.skipif(
    not hasattr(PipelineStage, "_get_init_p2p_neighbors_ops"),
    reason="from torch 2.15 on nobody meets before the first step",
)
def test_no_rank_meets_itself_where_two_of_its_stages_follow_each_other(world, corpus, tmp_path):
    met = world(2).run(ranks_met, flags_of(corpus, tmp_path, f"{PP2} --pipeline-schedule zbv"))
    assert met == [[1] * 4, [0] * 4]
