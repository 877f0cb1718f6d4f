"""AdamW on shards against torch's on whole tensors, the gradient norm, the loss scale, the schedules."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from megatron.errors import ConfigError
from megatron.kernels import cuda_library
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.clip import clip_factor, gradient_square_sum
from megatron.optimizer.loss_scale import LossScale
from megatron.optimizer.schedule import Schedule
from megatron.options import OptimizerConfig, PrecisionConfig, TrainingConfig
from megatron.training.batch_schedule import BatchSchedule
from tests.grid import grid

OPTIMIZER = OptimizerConfig(lr=0.01, weight_decay=0.1, adam_beta2=0.95)


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "matrix": torch.randn(6, 5, generator=generator),
        "bias": torch.randn(7, generator=generator),
    }


def _sharded_steps(rank: int) -> tuple[dict[str, torch.Tensor], float]:
    """Three steps on a matrix sharded over both processes and a replicated bias; gives whole tensors back."""
    mesh = grid(tp=2).tp_mesh
    placements = {"matrix": [Shard(0)], "bias": [Replicate()]}
    parameters = {
        name: nn.Parameter(distribute_tensor(value, mesh, placements[name]))
        for name, value in _tensors().items()
    }
    optimizer = AdamW(parameters, OPTIMIZER)
    for number in range(3):
        for name, parameter in parameters.items():
            gradient = _tensors()[name] * (number + 1)
            parameter.grad = distribute_tensor(gradient, mesh, placements[name])
        squares = gradient_square_sum(parameters.values(), torch.device("cpu"))
        torch.distributed.all_reduce(squares)
        norm = math.sqrt(squares.item())
        optimizer.step(
            learning_rate=0.01 / (number + 1),
            weight_decay=0.1,
            gradient_factor=clip_factor(squares.sqrt(), 1.0).float(),
        )
    assert optimizer.num_steps == 3
    whole = {name: parameter.full_tensor() for name, parameter in parameters.items()}
    whole |= {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in optimizer.tensors().items()
    }
    return {name: tensor.detach() for name, tensor in whole.items()}, norm


def test_sharded_adamw_equals_torch_on_whole_tensors(world):
    parameters = {name: nn.Parameter(value) for name, value in _tensors().items()}
    oracle = torch.optim.AdamW(
        [
            {"params": [parameters["matrix"]], "weight_decay": 0.1},
            {"params": [parameters["bias"]], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=False,
        foreach=False,
    )
    for number in range(3):
        for name, parameter in parameters.items():
            parameter.grad = _tensors()[name] * (number + 1)
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0, error_if_nonfinite=True)
        for group in oracle.param_groups:
            group["lr"] = 0.01 / (number + 1)
        oracle.step()
    for whole, sharded_norm in world(2).run(_sharded_steps):
        assert sharded_norm == pytest.approx(norm.item(), rel=1e-6)
        for name, parameter in parameters.items():
            torch.testing.assert_close(whole[name], parameter.detach(), rtol=1e-6, atol=1e-7)
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    whole[f"optimizer.{moment}.{name}"],
                    oracle.state[parameter][moment],
                    rtol=1e-6,
                    atol=1e-8,
                )


def _skipped_steps(rank: int, factor: float) -> list[str]:
    """Steps with and without a finite factor; gives the names of what the latter changed."""
    mesh = grid(tp=2).tp_mesh
    parameters = {
        name: nn.Parameter(distribute_tensor(value, mesh, [Replicate()]))
        for name, value in _tensors().items()
    }
    optimizer = AdamW(parameters, OPTIMIZER)

    def step(factor: float) -> None:
        for parameter in parameters.values():
            parameter.grad = parameter.detach().clone()
        optimizer.step(learning_rate=0.1, weight_decay=0.1, gradient_factor=torch.tensor(factor))
        assert all(p.grad is None for p in parameters.values())

    step(0.5)
    held = {**parameters, **optimizer.tensors()}
    before = {name: tensor.to_local().clone() for name, tensor in held.items()}
    step(factor)
    assert optimizer.num_steps == 1
    changed = [n for n, tensor in held.items() if not torch.equal(tensor.to_local(), before[n])]
    step(0.5)
    assert optimizer.num_steps == 2
    assert not any(torch.equal(tensor.to_local(), before[n]) for n, tensor in held.items())
    return changed


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_that_is_not_finite_leaves_every_bit(world, factor):
    assert world(2).run(_skipped_steps, factor) == [[], []]


def test_moments_are_stored_in_what_the_options_say():
    parameters = {name: nn.Parameter(value) for name, value in _tensors().items()}
    config = replace(OPTIMIZER, use_precision_aware_optimizer=True, exp_avg_dtype="bf16")
    optimizer = AdamW(parameters, config)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(learning_rate=0.1, weight_decay=0.0, gradient_factor=torch.tensor(1.0))
    for name, tensor in optimizer.tensors().items():
        is_square = name.startswith("optimizer.exp_avg_sq.")
        assert tensor.dtype == (torch.float32 if is_square else torch.bfloat16), name
        assert torch.equal(tensor, torch.full_like(tensor, 0.05 if is_square else 0.1))
    assert "torch's" in optimizer.describe() and "bfloat16 and float32" in optimizer.describe()


def _norm_and_step_on_a_gpu(rank: int) -> tuple[float, dict[str, torch.Tensor], str]:
    """One step on DTensors of the GPU, one of them without a row; gives the weights back."""
    mesh = init_device_mesh("cuda", (1,))
    values = {**_tensors(), "empty": torch.empty(0, 5)}
    parameters = {
        name: nn.Parameter(DTensor.from_local(value.cuda(), mesh, [Shard(0)]))
        for name, value in values.items()
    }
    optimizer = AdamW(parameters, OPTIMIZER)
    for parameter in parameters.values():
        parameter.grad = parameter.detach() * 2
    device = torch.device("cuda")
    square_sum = gradient_square_sum(parameters.values(), device)
    factor = torch.full((), 0.5, device=device)
    optimizer.step(learning_rate=0.01, weight_decay=0.1, gradient_factor=factor)
    weights = {name: p.to_local().detach().cpu() for name, p in parameters.items()}
    return square_sum.item(), weights, optimizer.describe()


@pytest.mark.gpu
def test_norm_and_step_of_dtensors_on_a_gpu_equal_torch(world):
    ((square_sum, weights, described),) = world(1).run(_norm_and_step_on_a_gpu)
    is_fused = cuda_library.obstacle() is None
    assert ("csrc/adamw.cu" if is_fused else "torch's") in described
    assert square_sum == pytest.approx(
        sum(4 * value.square().sum().item() for value in _tensors().values()), rel=1e-6
    )
    for name, value in _tensors().items():
        parameter = nn.Parameter(value)
        decay = 0.1 if value.ndim == 2 else 0.0
        oracle = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=decay)
        parameter.grad = value.clone()
        oracle.step()
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("norm", "clip_grad", "factor"),
    [(0.5, 1.0, 1.0), (3.0, 0.7, 0.7 / (3.0 + 1e-6)), (4.0, 0.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_clip_factor_scales_down_only(norm, clip_grad, factor):
    assert clip_factor(torch.tensor(norm, dtype=torch.float64), clip_grad) == factor


def test_loss_scale_halves_after_hysteresis_and_doubles_after_window():
    config = PrecisionConfig(fp16=True, initial_loss_scale=16.0, loss_scale_window=3, hysteresis=2)
    scale = LossScale.create(config)
    scale.update(found_overflow=True)
    assert scale.scale == 16.0
    scale.update(found_overflow=True)
    assert scale.scale == 8.0
    for _ in range(3):
        scale.update(found_overflow=False)
    assert scale.scale == 16.0
    resumed = LossScale.create(config)
    resumed.load_state(scale.state())
    assert resumed == scale


def test_loss_scale_has_a_floor_and_is_one_without_fp16():
    scale = LossScale.create(PrecisionConfig(fp16=True, initial_loss_scale=2.0, hysteresis=1))
    for _ in range(4):
        scale.update(found_overflow=True)
    assert scale.scale == 1.0
    for config in (PrecisionConfig(), PrecisionConfig(bf16=True)):
        scale = LossScale.create(config)
        scale.update(found_overflow=True)
        assert scale.scale == 1.0


def test_fixed_loss_scale_stays():
    scale = LossScale.create(PrecisionConfig(fp16=True, loss_scale=64.0))
    for overflow in (True, True, True, False):
        scale.update(found_overflow=overflow)
    assert scale.scale == 64.0


def _schedule(style: str, **changes: float) -> Schedule:
    config = replace(
        OptimizerConfig(lr=1.0, min_lr=0.1, lr_decay_style=style, lr_warmup_iters=10), **changes
    )
    return Schedule.create(config, TrainingConfig(train_iters=110), global_batch_size=4)


def test_warmup_is_linear_from_zero():
    schedule = _schedule("cosine")
    assert schedule.learning_rate(0) == 0.0
    assert schedule.learning_rate(20) == 0.5
    assert schedule.learning_rate(40) == 1.0


@pytest.mark.parametrize(
    ("style", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)]
)
def test_decay_reaches_its_middle_and_its_end(style, middle):
    schedule = _schedule(style)
    assert schedule.learning_rate(240) == pytest.approx(middle)
    assert schedule.learning_rate(440) == pytest.approx(1.0 if style == "constant" else 0.1)
    assert schedule.learning_rate(441) == pytest.approx(1.0 if style == "constant" else 0.1)


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.55), ("cosine", 0.55), ("exponential", 0.4727922)]
)
def test_wsd_is_stable_then_decays(shape, middle):
    schedule = _schedule("WSD", lr_wsd_decay_iters=20, lr_wsd_decay_style=shape)
    assert schedule.learning_rate(360) == 1.0
    assert schedule.learning_rate(400) == pytest.approx(middle)
    assert schedule.learning_rate(440) == pytest.approx(0.1)


def test_warmup_fraction_is_of_the_decay():
    schedule = _schedule("linear", lr_warmup_iters=0, lr_warmup_fraction=0.5, lr_decay_iters=100)
    assert schedule.learning_rate(100) == 0.5
    assert schedule.learning_rate(200) == 1.0


def test_warmup_longer_than_the_decay_is_refused():
    with pytest.raises(ConfigError, match="warmup of 440"):
        _schedule("linear", lr_warmup_iters=110)


def test_weight_decay_grows_from_start_to_end():
    schedule = _schedule(
        "linear",
        start_weight_decay=0.0,
        end_weight_decay=0.2,
        weight_decay_incr_style="linear",
    )
    assert schedule.weight_decay(0) == 0.0
    assert schedule.weight_decay(220) == pytest.approx(0.1)
    assert schedule.weight_decay(1000) == pytest.approx(0.2)


def test_batch_grows_by_increments_over_the_ramp():
    config = TrainingConfig(rampup_batch_size=(4, 2, 30), global_batch_size=10, train_samples=100)
    schedule = BatchSchedule.create(config, 10)
    assert [schedule.size(consumed) for consumed in (0, 9, 10, 19, 20, 29, 30, 99)] == [
        4, 4, 6, 6, 8, 8, 10, 10,
    ]  # fmt: skip
    assert BatchSchedule.create(TrainingConfig(), 8).size(5) == 8


def test_less_than_a_batch_at_the_end_is_no_step():
    schedule = BatchSchedule.create(TrainingConfig(), 8)
    assert [schedule.num_steps(0, samples) for samples in (7, 8, 23, 24)] == [0, 1, 2, 3]
    assert schedule.num_steps(32, 24) == 0  # a run that was once to be longer
