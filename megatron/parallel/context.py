"""Where this process stands in the grid of processes.

Ranks count through (pp, dp, cp, tp), tp fastest as in Megatron: neighbours in a node share layers, the slowest axis
carries the least traffic. Processes that share a sequence (cp) hold the same weights and sum their gradients like those
that read different samples (dp), so the one `DeviceMesh`, which parameters lie on, knows the two as one. It has the axes
(pp, dp_replicate, dp_shard, tp): gradients are summed over both in the middle, whose product is dp x cp, and optimizer
state is sharded over dp_shard only.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from megatron.errors import ConfigError
from megatron.logging import get_logger
from megatron.options import ParallelConfig
from megatron.parallel.context_parallel import ContextParallelRegion
from megatron.parallel.launch import Launch

logger = get_logger(__name__)

AXES = ("pp", "dp_replicate", "dp_shard", "tp")
_MOST_HOSTS = 8  # that a message names
# Releases of torch: setup.py's oldest, and the last one that the tests were run with (docs/dependencies.md).
OLDEST_TORCH, NEWEST_TRIED_TORCH = (2, 11), (2, 15)


@dataclass(frozen=True)
class ParallelContext:
    """The grid of processes and this one's place in it. Passed down, never global."""

    mesh: DeviceMesh
    device: torch.device
    cp: ContextParallelRegion
    pipeline_ends: (
        dist.ProcessGroup | None
    )  # first and last rank of a pipeline; None: this one is neither

    def _size(self, axis: str) -> int:
        return self.mesh.size(AXES.index(axis))

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        return self.mesh.size()

    @property
    def tp_size(self) -> int:
        return self._size("tp")

    @property
    def tp_mesh(self) -> DeviceMesh:
        return self.mesh["tp"]

    @property
    def tp_group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("tp")

    @property
    def pp_size(self) -> int:
        return self._size("pp")

    @property
    def pp_rank(self) -> int:
        return self.mesh.get_local_rank("pp")

    @property
    def pp_group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("pp")

    @property
    def dp_size(self) -> int:
        return self._size("dp_replicate") * self._size("dp_shard") // self.cp.size

    @property
    def dp_rank(self) -> int:
        """The index that decides which samples are read; processes that share them have the same."""
        return self.rank // (self.tp_size * self.cp.size) % self.dp_size

    @property
    def dp_mesh(self) -> DeviceMesh:
        """The two axes of dp x cp, for `fully_shard`: replicate over the first, shard over the second."""
        return self.mesh["dp_replicate", "dp_shard"]

    @classmethod
    def create(
        cls, config: ParallelConfig, world_size: int, device: torch.device
    ) -> ParallelContext:
        """Lay out world_size processes. Collective over the world: every process calls it in step.

        Raises ConfigError if the sizes do not divide the world. torch.distributed is initialised before.
        """
        replicate, shard = config.gradient_sizes(world_size)
        mesh = init_device_mesh(
            device.type,
            (
                config.pipeline_model_parallel_size,
                replicate,
                shard,
                config.tensor_model_parallel_size,
            ),
            mesh_dim_names=AXES,
        )
        timeout = timedelta(minutes=config.distributed_timeout_minutes)
        for axis in AXES:  # init_device_mesh gives its groups torch's own timeout
            _set_pg_timeout(timeout, mesh.get_group(axis))
        cp = _make_context_parallel(config, world_size, timeout)
        return cls(mesh, device, cp, _join_pipeline_ends(mesh, timeout))


def _make_context_parallel(
    config: ParallelConfig, world_size: int, timeout: timedelta
) -> ContextParallelRegion:
    """Group the processes that share a sequence. Collective over the world."""
    size, tp_size = config.context_parallel_size, config.tensor_model_parallel_size
    if size == 1:
        return ContextParallelRegion()
    ranks = torch.arange(world_size).view(-1, size, tp_size)
    groups = ranks.transpose(1, 2).reshape(-1, size).tolist()
    group, _ = dist.new_subgroups_by_enumeration(groups, timeout=timeout)
    return ContextParallelRegion(size, group.rank(), group)


def _join_pipeline_ends(mesh: DeviceMesh, timeout: timedelta) -> dist.ProcessGroup | None:
    """Group the first and the last rank of every pipeline. Collective over the world."""
    ranks = mesh.mesh
    if len(ranks) == 1:
        return None
    ends = torch.stack([ranks[0], ranks[-1]], dim=-1).reshape(-1, 2).tolist()
    group, _ = dist.new_subgroups_by_enumeration(ends, timeout=timeout)
    return group


def initialize_distributed(config: ParallelConfig, launch: Launch) -> torch.device:
    """Join the process group and give this process's device. Collective over the world.

    Errors: ConfigError when nccl is asked for and this node has fewer GPUs than processes, when some nodes have
    enough and others do not, or when torch is too old.
    """
    check_torch(torch.__version__)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    use_gpu = num_gpus >= launch.local_world_size and config.distributed_backend != "gloo"
    if config.distributed_backend == "nccl" and not use_gpu:
        raise ConfigError(
            f"--distributed-backend nccl needs a GPU for each process; this node has {num_gpus} "
            f"for {launch.local_world_size} processes. Start fewer, or use gloo"
        )
    device = torch.device("cuda", launch.local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    elif num_gpus > 0 and config.distributed_backend == "auto":
        logger.info(
            f"on the CPU: this node has {num_gpus} GPU(s) for {launch.local_world_size} processes. Start "
            f"{num_gpus} to use them (--nproc-per-node, GPUS_PER_NODE)"
        )
    timeout = timedelta(minutes=config.distributed_timeout_minutes)
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    if launch.world_size == 1 and not launch.has_rendezvous:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(
            backend, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
    check_same_device(device.type)
    return device


def check_torch(version: str) -> None:
    """Warn of a torch that nothing was tried with: much here stands on names that it may change. ConfigError if too old."""
    major, minor = map(int, version.split(".")[:2])
    oldest, newest = (".".join(map(str, one)) for one in (OLDEST_TORCH, NEWEST_TRIED_TORCH))
    if (major, minor) < OLDEST_TORCH:
        raise ConfigError(f"torch {version} is too old; install one from {oldest} on")
    if (major, minor) > NEWEST_TRIED_TORCH:
        logger.warning(
            f"torch {version} is newer than {newest}, the last one that this was tried with: if something fails inside "
            f"of torch, take one of {oldest} to {newest}"
        )


def check_same_device(kind: str) -> None:
    """Raise ConfigError, on every process, unless all compute on the same kind of device. Collective over the world.

    A node that has lost a GPU would go on alone on its CPUs, and the others wait for it.
    """
    told = [("", "")] * dist.get_world_size()
    dist.all_gather_object(told, (socket.gethostname(), kind))
    on_cpu = sorted({host for host, its_kind in told if its_kind == "cpu"})
    if on_cpu and any(its_kind != "cpu" for _, its_kind in told):
        more = f" and {len(on_cpu) - _MOST_HOSTS} more" if len(on_cpu) > _MOST_HOSTS else ""
        raise ConfigError(
            f"torch sees fewer GPUs than there are processes on {', '.join(on_cpu[:_MOST_HOSTS])}{more}, and enough on "
            "the other nodes; look at nvidia-smi there and take these nodes out, or start fewer processes on each"
        )
