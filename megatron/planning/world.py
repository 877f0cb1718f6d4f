"""A place in a world that does not exist: what a model needs to be built and run on the meta device.

No process group is started and torch's own state stays as it was. Collectives move nothing; the group writes down
what they would have moved. Knows nothing of memory or time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from megatron.parallel.context import ParallelContext
from megatron.parallel.context_parallel import ContextParallelRegion

META = torch.device("meta")


class PlannedGroup(dist.ProcessGroup):
    """A group of which this process is a member and the others are nowhere."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # a group without a store
        self.moved: Counter[str] = Counter()  # bytes that each member sends, by ring algorithms

    def _note(self, operation: str, whole: torch.Tensor, rounds: int) -> None:
        share = (self.size() - 1) / self.size()
        self.moved[operation] += int(rounds * share * whole.numel() * whole.element_size())

    # torch.distributed takes None for work that is done; its declarations do not say so.
    def allreduce(self, tensors: Any, opts: Any = None) -> None:  # type: ignore[override]
        """Note what an all-reduce moves: a reduce-scatter and an all-gather."""
        for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
            self._note("all-reduce", tensor, 2)

    def _allgather_base(self, output: Any, input: Any, opts: Any = None) -> None:  # type: ignore[override]
        self._note("all-gather", output, 1)

    all_gather_single = _allgather_base  # type: ignore[assignment]  # from torch 2.13 on

    def _reduce_scatter_base(self, output: Any, input: Any, opts: Any = None) -> None:  # type: ignore[override]
        self._note("reduce-scatter", input, 1)

    reduce_scatter_single = _reduce_scatter_base  # type: ignore[assignment]


class _PlannedMesh(DeviceMesh):
    """The tensor parallel axis: it knows its size and this process's place, and has no groups."""

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        """Give the place on the axis."""
        coordinate = self.get_coordinate()
        assert coordinate is not None
        return int(coordinate[0])


@dataclass(frozen=True)
class PlannedContext(ParallelContext):
    """What `GPTModel` reads of a context, for one rank of the tensor parallel axis."""

    planned_group: PlannedGroup | None = None

    @property
    def tp_mesh(self) -> DeviceMesh:
        return self.mesh

    @property
    def tp_group(self) -> dist.ProcessGroup:
        assert self.planned_group is not None
        return self.planned_group

    @property
    def tp_size(self) -> int:
        return self.tp_group.size()

    @property
    def moved(self) -> Counter[str]:
        """Bytes that collectives over tp would have sent from this process so far."""
        assert self.planned_group is not None
        return self.planned_group.moved

    @property
    def moved_over_cp(self) -> Counter[str]:
        """The same over cp."""
        return self.cp.group.moved if isinstance(self.cp.group, PlannedGroup) else Counter()

    @classmethod
    def at(cls, tp_rank: int, tp_size: int, cp_size: int = 1) -> PlannedContext:
        """Stand at a place of the axis, first of those that share a sequence: they hold alike."""
        mesh = _PlannedMesh(
            "cpu",  # of its name alone: tensors on the meta device stay there
            torch.arange(tp_size),
            mesh_dim_names=("tp",),
            _init_backend=False,
            _rank=tp_rank,
        )
        cp = ContextParallelRegion()
        if cp_size > 1:
            cp = ContextParallelRegion(cp_size, 0, PlannedGroup(0, cp_size))
        return cls(
            mesh, META, cp=cp, pipeline_ends=None, planned_group=PlannedGroup(tp_rank, tp_size)
        )


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Put parameters of a dtype in the place of a module's, as `fully_shard` does for a pass."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            assert isinstance(parameter, DTensor)
            local = parameter.to_local().detach().to(dtype)
            mesh, placements = parameter.device_mesh, parameter.placements
            copy = DTensor.from_local(local, mesh, placements, run_check=False)
            setattr(owner, name, nn.Parameter(copy))
