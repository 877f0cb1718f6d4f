"""The grid of processes of a test's world, made once a layout and kept for as long as the world lives.

Every group of gloo costs threads that wake a hundred times a second, also when nobody uses it, and torch's caches
hold meshes that compare equal: a world must neither make a layout's groups anew for each test, nor end them.
"""

import functools

import torch
import torch.distributed as dist

from megatron.options import ParallelConfig
from megatron.parallel.context import ParallelContext


@functools.cache
def grid(
    *, pp: int = 1, dp_replicate: int = 1, dp_shard: int = 1, tp: int = 1, cp: int = 1
) -> ParallelContext:
    """Lay out the processes of this world, whose number is pp x dp_replicate x dp_shard x tp. Collective over it.

    cp of them share a sequence, among those of dp_replicate x dp_shard.
    """
    config = ParallelConfig(
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        pipeline_model_parallel_size=pp,
        use_distributed_optimizer=True,
        num_distributed_optimizer_instances=dp_replicate,
    )
    return ParallelContext.create(config, pp * dp_replicate * dp_shard * tp, torch.device("cpu"))


def grid_of(parallel: ParallelConfig) -> ParallelContext:
    """Lay them out as a run with these options does. Collective over the world."""
    dp_replicate, dp_shard = parallel.gradient_sizes(dist.get_world_size())
    return grid(
        pp=parallel.pipeline_model_parallel_size,
        dp_replicate=dp_replicate,
        dp_shard=dp_shard,
        tp=parallel.tensor_model_parallel_size,
        cp=parallel.context_parallel_size,
    )
