"""train_step against transformers and torch.optim.AdamW: masks, clipping, loss scale; and a step that is lost."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from megatron.data.loader import Batch
from megatron.data.sample_order import sample_numbers
from megatron.optimizer.loss_scale import LossScale
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.run import Run
from megatron.training.start import plan_start
from megatron.training.step import StepParts, train_step
from tests.grid import grid_of
from tests.model.test_transformers import to_bigcode
from tests.training.corpus import VOCAB_SIZE
from tests.training.runs import flags_of, parse

NUM_SEQUENCES, SEQ_LENGTH, NUM_STEPS, CLIP = 8, 32, 3, 0.5
EPSILON = (
    1e-3  # Adam's: with 1e-8 the sign of a gradient that is rounding noise moves a weight by lr
)
LAYOUTS = {
    "alone": (1, ""),
    "TP2 sequence parallel": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2 ZBV": (2, "--pipeline-model-parallel-size 2 --pipeline-schedule zbv"),
    "DP2 distributed optimizer": (2, "--use-distributed-optimizer"),
    "TP2 DP2": (4, "--tensor-model-parallel-size 2"),
}


def _global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, labels and a mask whose rows, one of them empty, differ in how many tokens carry loss."""
    generator = torch.Generator().manual_seed(step)
    shape = (NUM_SEQUENCES, SEQ_LENGTH)
    tokens = torch.randint(0, VOCAB_SIZE, shape, generator=generator)
    labels = torch.randint(0, VOCAB_SIZE, shape, generator=generator)
    share = torch.linspace(0.0, 1.0, NUM_SEQUENCES).unsqueeze(1)
    return tokens, labels, (torch.rand(shape, generator=generator) < share).float()


def _step(run: Run, parts: StepParts, step: int, *, is_poisoned: bool = False):
    tokens, labels, mask = _global_batch(step)
    if is_poisoned:
        mask[1, 0] = float("inf")  # of one data parallel rank only
    context = parts.context
    consumed = step * NUM_SEQUENCES
    numbers = sample_numbers(
        consumed,
        NUM_SEQUENCES,
        micro_batch_size=1,
        dp_rank=context.dp_rank,
        dp_size=context.dp_size,
    )
    rows = torch.tensor(numbers) - consumed
    batch = Batch(tokens[rows], labels[rows], mask[rows], torch.tensor(numbers))
    return train_step(
        parts, batch, consumed_samples=consumed, global_batch_size=NUM_SEQUENCES
    ).read()


def _whole(run: Run) -> dict[str, torch.Tensor]:
    """The parameters of this process's stage, without the rows that pad the vocabulary."""
    whole = {}
    for name, tensor in run.saver._tensors.parameters.items():
        assert isinstance(tensor, DTensor)
        whole[name] = tensor.detach().full_tensor().clone()
    for name in whole:
        if "word_embeddings" in name:
            whole[name] = whole[name][:VOCAB_SIZE]
    return whole


def _build(flags: str) -> tuple[Run, StepParts]:
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    run = build_run(inputs, plan_start(inputs, world_size), grid_of(inputs.config.parallel))
    scale = LossScale(1024.0, True, minimum=1.0, window=1000, hysteresis=1, remaining_hysteresis=1)
    return run, dataclasses.replace(run.parts, loss_scale=scale)


def _train(rank: int, flags: str) -> tuple[dict, dict, list[tuple[float, float]]]:
    run, parts = _build(flags)
    before = _whole(run)
    results = [_step(run, parts, step) for step in range(1, NUM_STEPS + 1)]
    copies = [] if parts.tied_embedding is None else parts.tied_embedding._copies
    for copy in copies[1:]:
        assert torch.equal(copy.to_local(), copies[0].to_local())
    run.close()
    return before, _whole(run), [(result.loss, result.gradient_norm) for result in results]


def _lose_a_step(rank: int, flags: str) -> None:
    run, parts = _build(flags)
    _step(run, parts, 1)
    before, moments = _whole(run), {n: t.clone() for n, t in parts.optimizer.tensors().items()}
    result = _step(run, parts, 2, is_poisoned=True)
    assert result.is_skipped and not result.is_lost
    assert parts.loss_scale.scale == 512.0
    assert parts.optimizer.num_steps == 1
    for name, tensor in _whole(run).items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in parts.optimizer.tensors().items():
        assert torch.equal(tensor.to_local(), moments[name].to_local()), name
    assert not _step(run, parts, 3).is_skipped
    assert parts.optimizer.num_steps == 2
    run.close()


def _flags(corpus, save, extra: str) -> str:
    return flags_of(corpus, save, f"--clip-grad {CLIP} --adam-eps {EPSILON} --eval-iters 0 {extra}")


@pytest.fixture(scope="module")
def expected(world, corpus, tmp_path_factory):
    """Weights, losses and gradient norms of transformers' model under torch's AdamW."""
    flags = _flags(corpus, tmp_path_factory.mktemp("oracle"), "")
    ((before, _, _),) = world(1).run(_train, flags)
    model = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(
            vocab_size=VOCAB_SIZE,
            n_positions=SEQ_LENGTH,
            n_embd=32,
            n_layer=4,
            n_head=4,
            multi_query=True,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model.load_state_dict(to_bigcode(before, multi_query=True, num_layers=4), strict=False)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=EPSILON,
    )
    start = plan_start(open_inputs(parse(flags), 1), 1)
    numbers = []
    for step in range(1, NUM_STEPS + 1):
        tokens, labels, mask = _global_batch(step)
        losses = F.cross_entropy(model(tokens).logits.transpose(1, 2), labels, reduction="none")
        loss = (losses * mask).sum() / mask.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = start.schedule.learning_rate(step * NUM_SEQUENCES)
        optimizer.step()
        optimizer.zero_grad()
        numbers.append((loss.item(), norm.item()))
    assert all(norm > CLIP for _, norm in numbers), "clipping has to be active"
    return {name: p.detach() for name, p in model.named_parameters()}, numbers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_equal_transformers_under_torch_adamw(world, corpus, expected, tmp_path, layout):
    size, extra = LAYOUTS[layout]
    weights: dict[str, torch.Tensor] = {}
    for _, after, numbers in world(size).run(_train, _flags(corpus, tmp_path, extra)):
        weights |= after
        for (loss, norm), (expected_loss, expected_norm) in zip(numbers, expected[1], strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert norm == pytest.approx(expected_norm, rel=1e-4)
    ours = to_bigcode(weights, multi_query=True, num_layers=4)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "alone"])
def test_a_step_with_infinite_gradients_changes_nothing(world, corpus, tmp_path, layout):
    size, extra = LAYOUTS[layout]
    world(size).run(_lose_a_step, _flags(corpus, tmp_path, extra))
