"""How a run is laid over processes: options of tensor, pipeline, data and context parallelism."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron.option_field import option, require


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is laid over processes. Data parallel size follows from the world size."""

    tensor_model_parallel_size: int = option(1, "processes that share each layer", minimum=1)
    pipeline_model_parallel_size: int = option(
        1, "processes that share the stack of layers", minimum=1
    )
    context_parallel_size: int = option(
        1, "processes that share each sequence, for long ones", minimum=1
    )
    pipeline_schedule: Literal["auto", "1f1b", "interleaved", "zbv", "dualpipev"] = option(
        "auto",
        "order of the passes of a pipeline: zbv and dualpipev lay two stages on each rank, in a V; "
        "auto is interleaved where chunks are asked for, else 1f1b",
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None, "interleave the pipeline: layers of one chunk", minimum=1
    )
    num_virtual_stages_per_pipeline_rank: int | None = option(
        None,
        "interleave the pipeline: chunks of each stage, which may be of uneven stages",
        minimum=1,
    )
    decoder_first_pipeline_num_layers: int | None = option(
        None, "layers of the first stage; the other stages share the rest evenly", minimum=1
    )
    decoder_last_pipeline_num_layers: int | None = option(
        None, "layers of the last stage; the other stages share the rest evenly", minimum=1
    )
    account_for_embedding_in_pipeline_split: bool = option(
        False, "split as if the embedding were a layer: the first stage holds one less"
    )
    account_for_loss_in_pipeline_split: bool = option(
        False, "split as if the LM head and the loss were a layer: the last stage holds one less"
    )
    sequence_parallel: bool = option(
        False, "shard LayerNorm, dropout and residuals over the sequence within a tensor group"
    )
    use_distributed_optimizer: bool = option(
        False, "shard optimizer state and gradients over data parallel processes"
    )
    num_distributed_optimizer_instances: int = option(
        1,
        "with --use-distributed-optimizer: copies of the optimizer state, each sharded over its part of the data "
        "(and context) parallel processes, such as a node; gradients are summed over all",
        minimum=1,
    )
    distributed_backend: Literal["auto", "gloo", "nccl"] = option(
        "auto", "nccl with a GPU for each process, gloo without"
    )
    distributed_timeout_minutes: float = option(
        10.0, "a collective that waits longer fails", above=0.0
    )

    @property
    def has_stages_in_v(self) -> bool:
        """Rank r holds the stages r and 2 x ranks - 1 - r: the first rank has both ends of the model."""
        return self.pipeline_schedule in ("zbv", "dualpipev")

    @property
    def model_parallel_size(self) -> int:
        """Processes that read the same samples."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def sequence_divisor(self) -> int:
        """What the sequence length must be a multiple of: pieces of one length for all that share it."""
        pieces = 2 if self.context_parallel_size > 1 else 1  # chunks of a context parallel process
        if self.sequence_parallel:
            pieces = math.lcm(pieces, self.tensor_model_parallel_size)
        return pieces * self.context_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of processes that read different samples; ConfigError if the layout does not fit."""
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        cp, size = self.context_parallel_size, self.model_parallel_size
        factors = f"--tensor-model-parallel-size {tp} x --pipeline-model-parallel-size {pp}"
        if cp > 1:
            factors += f" x --context-parallel-size {cp}"
        require(
            world_size >= size,
            f"{factors} needs {size} processes and there are {world_size}; start more (torchrun's "
            f"--nproc-per-node, the example's GPUS_PER_NODE) or lower one of them",
        )
        require(
            world_size % size == 0,
            f"{world_size} processes cannot be split into groups of {size} ({factors}); "
            f"use a multiple of {size}",
        )
        return world_size // size

    def gradient_sizes(self, world_size: int) -> tuple[int, int]:
        """Processes that hold the same weights as (copies of the optimizer state, processes each is sharded over).

        They are the data and the context parallel ones, whose gradients are summed.
        """
        num_processes = self.data_parallel_size(world_size) * self.context_parallel_size
        if not self.use_distributed_optimizer:
            return num_processes, 1
        copies = self.num_distributed_optimizer_instances
        kind = "data parallel" if self.context_parallel_size == 1 else "data x context parallel"
        require(
            num_processes % copies == 0,
            f"--num-distributed-optimizer-instances {copies} does not divide the {num_processes} {kind} "
            f"processes; give a divisor of {num_processes}",
        )
        return copies, num_processes // copies

    def check(self, world_size: int) -> None:
        require(
            self.use_distributed_optimizer or self.num_distributed_optimizer_instances == 1,
            "--num-distributed-optimizer-instances needs --use-distributed-optimizer: without it every "
            "data parallel process holds a copy",
        )
        self.gradient_sizes(world_size)
