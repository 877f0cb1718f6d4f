"""What a plan counts is what a run allocates, on one to four processes."""

import dataclasses

import pytest
import torch
from torch.distributed.tensor import DTensor

from megatron.config import Config
from megatron.layer_split import StageLayers
from megatron.model.flops import num_parameters
from megatron.model.gpt import choose_model_kernels
from megatron.model.stage import build_stage
from megatron.optimizer.adamw import AdamW
from megatron.options import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
)
from megatron.parallel.data_parallel import FullyShardedModel, _groups, shard_data_parallel
from megatron.planning.hardware import read_hardware
from megatron.planning.kernels import choose_planned_kernels, countable
from megatron.planning.stage import count_states, moment_bytes, parameter_groups, plan_stage
from megatron.planning.world import PlannedContext
from tests.grid import grid
from tests.model.tiny import make_model, tiny_config

BATCH_SIZE, SEQ_LENGTH = 2, 8


BF16_MOMENTS = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16"}


def _config(tp=1, *, cp=1, bf16=False, moments=None, **changes):
    model = tiny_config(num_layers=4, attention_backend="explicit", **changes)
    return Config(
        model=model,
        parallel=ParallelConfig(
            tensor_model_parallel_size=tp, context_parallel_size=cp, sequence_parallel=tp > 1
        ),
        precision=PrecisionConfig(bf16=bf16),
        optimizer=OptimizerConfig(lr=1e-3, **(moments or {})),
        training=TrainingConfig(micro_batch_size=BATCH_SIZE),
        data=DataConfig(seq_length=SEQ_LENGTH),
    )


def _kernels(config):
    return choose_model_kernels(config.model, torch.device("cpu"), torch.float32)


def _make(config, context, stage):
    return make_model(
        config.model,
        context,
        layers=stage.layers,
        is_first=stage.is_first,
        is_last=stage.is_last,
        sequence_parallel=config.parallel.sequence_parallel,
        kernels=_kernels(config),
    )


def _inputs(config, stage):
    """Real inputs of a stage: ids, or hidden states of a process."""
    num_positions = SEQ_LENGTH // config.parallel.context_parallel_size
    ids = torch.arange(BATCH_SIZE * num_positions).view(BATCH_SIZE, num_positions) % 50
    length = num_positions // config.parallel.tensor_model_parallel_size
    x = ids
    if not stage.is_first:
        dtype = torch.bfloat16 if config.precision.bf16 else torch.float32
        shape = (length, BATCH_SIZE, config.model.hidden_size)
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
    others = {"labels": ids} if stage.is_last else {}
    return x, {"sample_ids": torch.arange(BATCH_SIZE), **others}


def _sum_of_storages(tensors):
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _allocated(rank, config, stage, tp, dp):
    """Train a stage for two micro-batches and give the bytes behind what `States` counts, on this process."""
    context = grid(dp_shard=dp, tp=tp)
    model = _make(config, context, stage)
    dtype = torch.bfloat16 if config.precision.bf16 else torch.float32
    data_parallel = shard_data_parallel(model, list(model.layers.values()), context, dtype)
    parameters = dict(model.named_parameters())
    optimizer = AdamW(parameters, config.optimizer)
    is_sharded = isinstance(data_parallel, FullyShardedModel)
    held = [p for _, group in _groups(model) for p in group.fsdp_params]
    shards = _sum_of_storages(
        [p._sharded_param_data for p in held] or [p._local_tensor for p in parameters.values()]
    )
    for is_last in (False, True):
        data_parallel.set_gradient_sync(is_last_micro_batch=is_last)
        x, others = _inputs(config, stage)
        model(x, **others).sum().backward()
        if not is_last and is_sharded:
            gathered = _sum_of_storages(t for p in held for t in p.all_gather_outputs)
            sums = [
                p.unsharded_accumulated_grad
                if p.unsharded_accumulated_grad is not None
                else p._unsharded_param.grad
                for p in held
            ]
            sums = [g._local_tensor if isinstance(g, DTensor) else g for g in sums]
            whole = _sum_of_storages(sums)
        elif not is_last:
            gathered = _sum_of_storages(model.parameters())
            whole = _sum_of_storages(p.grad._local_tensor for p in parameters.values())
    data_parallel.finish()
    reduced = _sum_of_storages(p.grad._local_tensor for p in parameters.values())
    assert reduced == shards
    moments = sum(
        moment._local_tensor.untyped_storage().nbytes() for moment in optimizer.tensors().values()
    )
    return {
        "shards": shards,
        "gathered": gathered,
        "whole_gradients": whole,
        "moments": moments,
    }


FIRST = StageLayers(0, 2, range(3))
LAST = StageLayers(1, 2, range(3, 4))
WHOLE = StageLayers(0, 1, range(4))


@pytest.mark.parametrize(
    ("tp", "dp", "stage", "bf16", "moments"),
    [
        (1, 1, WHOLE, True, BF16_MOMENTS),
        (1, 3, WHOLE, False, {}),  # nothing divides by 3: shards are padded, and moments are not
        (1, 3, LAST, True, {**BF16_MOMENTS, "exp_avg_sq_dtype": "bf16"}),
        (2, 2, FIRST, True, {}),
        (2, 2, LAST, False, {}),
    ],
)
def test_states_are_what_a_run_allocates(world, tp, dp, stage, bf16, moments):
    config = _config(tp, bf16=bf16, moments=moments, attention_head_type="multiquery")
    found = world(tp * dp).run(_allocated, config, stage, tp, dp)
    for rank, allocated in enumerate(found):
        model = build_stage(config, PlannedContext.at(rank % tp, tp), stage, _kernels(config))
        counted = count_states(
            parameter_groups(model),
            dp,
            2 if bf16 else 4,
            moment_bytes=moment_bytes(config.optimizer),
            shard_rank=rank // tp,
        )
        counts = dataclasses.asdict(counted)
        assert {name: counts[name] for name in allocated} == allocated


def _saved(rank, config, stage, tp):
    """Run a stage forward and give the bytes that autograd keeps besides parameters and inputs."""
    cp = config.parallel.context_parallel_size
    model = _make(config, grid(tp=tp, cp=cp, dp_shard=cp), stage)
    x, others = _inputs(config, stage)
    kept = {}

    def pack(tensor):
        storage = (
            tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        ).untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x, **others)
    kept[out.untyped_storage().data_ptr()] = out.untyped_storage()
    outside = [p._local_tensor for p in model.parameters()] + [x, *others.values()]
    for tensor in outside:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in kept.values())  # some let go after they were kept


CASES = {
    "whole": (1, WHOLE, {}),
    "dropout": (1, WHOLE, {"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "grouped": (1, WHOLE, {"num_query_groups": 2}),
    "rotary": (1, WHOLE, {"position_embedding_type": "rope", "kv_channels": 4}),
    "selective": (1, WHOLE, {"recompute_granularity": "selective"}),
    "norms and GELUs anew": (
        1,
        WHOLE,
        {
            "recompute_granularity": "selective",
            "recompute_modules": ("core_attn", "layernorm", "mlp_act"),
        },
    ),
    "full": (1, WHOLE, {"recompute_granularity": "full", "recompute_num_layers": 2}),
    "full, layer by layer": (1, WHOLE, {"recompute_granularity": "full"}),
    "logits in chunks": (1, WHOLE, {"logits_chunk_size": 3}),
    "first of two, sequence parallel": (2, FIRST, {"attention_head_type": "multiquery"}),
    "last of two, sequence parallel": (2, LAST, {"attention_head_type": "multiquery"}),
}


@pytest.mark.parametrize("name", CASES)
def test_activations_are_what_autograd_keeps(world, name):
    tp, stage, changes = CASES[name]
    config = _config(tp, **changes)
    for rank, bytes_kept in enumerate(world(tp).run(_saved, config, stage, tp)):
        plan = plan_stage(
            config, stage, countable(_kernels(config)), tp_rank=rank, num_shards=1
        ).one_pass
        assert plan.saved_bytes + plan.logits_bytes == bytes_kept
        rows = SEQ_LENGTH * BATCH_SIZE
        is_whole = stage.is_last and config.model.logits_chunk_size is None
        assert plan.logits_bytes == (rows * 50 // tp * 4 if is_whole else 0)


def test_what_tensor_parallelism_moves_is_noted_without_a_process_group():
    config = _config(2, attention_head_type="multiquery")
    plan = plan_stage(config, FIRST, countable(_kernels(config)), tp_rank=0, num_shards=1)
    whole = SEQ_LENGTH * BATCH_SIZE * config.model.hidden_size * 4
    # a layer gathers the sequence twice and scatters it twice, in either direction; of two processes each sends half
    layers = len(FIRST.layers)
    assert plan.moved == {
        "all-gather": (4 * layers + 1) * whole // 2,  # and the gradient of the embedding
        "reduce-scatter": (4 * layers + 1) * whole // 2,  # and the embedding
    }
    assert not torch.distributed.is_initialized()


PUBLISHED = {  # StarCoder's sizes: layers, width, heads, parameters
    "1b": (24, 2048, 16, 1.137e9),
    "3b": (36, 2816, 22, 3.043e9),
    "7b": (42, 4096, 32, 7.327e9),
    "15b": (40, 6144, 48, 15.517e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_number_of_parameters(name):
    layers, width, heads, number = PUBLISHED[name]
    model = ModelConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        attention_head_type="multiquery",
        max_position_embeddings=8192,
        vocab_size=49152,
        padded_vocab_size=49152,
    )
    config = Config(model=model)
    stage = StageLayers(0, 1, range(layers))
    built = build_stage(config, PlannedContext.at(0, 1), stage, _kernels(config))
    states = count_states(parameter_groups(built), 1, 2, moment_bytes=8)
    assert states.num_parameters == num_parameters(model)
    assert states.num_parameters == pytest.approx(number, abs=0.0005e9)


def test_a_pass_works_on_no_more_for_having_more_layers():
    work = []
    for layers in (range(2), range(4)):
        config = _config(recompute_granularity="full")
        stage = StageLayers(1, 3, layers)  # no end of the model
        plan = plan_stage(config, stage, countable(_kernels(config)), tp_rank=0, num_shards=1)
        work.append(plan.one_pass.work_bytes)
    assert (
        work[0] == work[1] > 0
    )  # one layer at a time is computed anew, and weights are counted elsewhere


def test_activations_of_a_shared_sequence_are_what_autograd_keeps(world):
    config = _config(2, cp=2, attention_head_type="multiquery", hidden_dropout=0.1)
    plans = [
        plan_stage(
            config, LAST, countable(_kernels(config)), tp_rank=tp_rank, num_shards=1
        ).one_pass
        for tp_rank in range(2)
    ]
    kept = [plan.saved_bytes + plan.logits_bytes for plan in plans]
    assert world(4).run(_saved, config, LAST, 2) == kept * 2  # both shares cost alike


def test_products_in_8_bits_are_as_many_and_keep_as_much():
    plans = []
    for fp8_format in (None, "hybrid"):
        config = _config(bf16=True, hidden_size=64, ffn_hidden_size=128, kv_channels=16)
        precision = dataclasses.replace(config.precision, fp8_format=fp8_format)
        config = dataclasses.replace(config, precision=precision)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, attention_backend="auto")
        )
        kernels = choose_planned_kernels(config, read_hardware("h100-80gb"))
        plans.append(plan_stage(config, WHOLE, kernels, tp_rank=0, num_shards=1).one_pass)
    full, eight = plans
    assert full.saved_bytes == eight.saved_bytes
    layer = config.model.num_layers * 2 * SEQ_LENGTH * BATCH_SIZE
    width = config.model.hidden_size
    weights = 2 * width * width + 2 * width * config.model.ffn_size  # queries and output; MLP
    weights += 2 * width * config.model.query_groups * config.model.head_dim
    # forward in 8 bits; of backward the gradients of inputs are, and those of weights are not
    assert eight.forward.eight_bit_flops == layer * weights
    assert eight.backward.eight_bit_flops == layer * weights
    for one, other in ((full.forward, eight.forward), (full.backward, eight.backward)):
        assert one.product_flops == other.product_flops + other.eight_bit_flops


def test_products_by_another_library_are_as_many():
    hardware = dataclasses.replace(read_hardware("h100-80gb"), device_type="cpu")
    plans = []
    for kernels in ("product=library", "product=onednn"):
        config = _config()
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, kernels=(kernels,))
        )
        planned = choose_planned_kernels(config, hardware)
        plans.append(plan_stage(config, WHOLE, planned, tp_rank=0, num_shards=1))
    assert plans[0] == plans[1] and plans[0].one_pass.forward.product_flops > 0
