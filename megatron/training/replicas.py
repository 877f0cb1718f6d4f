"""Whether processes that hold the same weights hold the same bits: a search for silent data corruption.

Parameters and moments that data or tensor parallel processes, or the two ends of a pipeline, keep a copy of each are
updated by equal numbers, so their bits stay equal. A copy that differs says that a device has made a mistake which
neither raised an error nor made a number that is not finite. Knows nothing of the model.
"""

from __future__ import annotations

import hashlib
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from megatron.errors import TrainingError, first_of
from megatron.logging import get_logger
from megatron.parallel.agreement import gather_everywhere
from megatron.parallel.context import AXES, ParallelContext
from megatron.parallel.parameter import local_part

logger = get_logger(__name__)

_BITS = {2: torch.int16, 4: torch.int32}
_NUM_COLUMNS = 1024
_MAX_NAMED = 3  # tensors of a process in a message

Kind = tuple[str, ...]  # the axes of the grid along which processes hold different parts


def checksum(tensor: Tensor) -> Tensor:
    """Sum the bits of all elements, each times an odd number that depends on its place, modulo 2^64: int64 [].

    Integers are exact in whatever order a device adds them, and one changed bit always changes the sum, by a power of
    two times an odd number. Nothing waits for the device.
    """
    bits = tensor.reshape(-1).view(_BITS[tensor.dtype.itemsize])
    whole = len(bits) // _NUM_COLUMNS * _NUM_COLUMNS
    odd = 2 * torch.arange(_NUM_COLUMNS, device=bits.device) + 1
    columns = bits[:whole].view(-1, _NUM_COLUMNS).sum(dim=0, dtype=torch.int64)
    rest = bits[whole:].long()
    return (columns * odd).sum() + (rest * odd[: len(rest)]).sum()


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Give the checksums of this process's parts of DTensors. Synchronises the device."""
    sums = torch.stack([checksum(local_part(tensor)) for tensor in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))


@dataclass(frozen=True)
class Replica:
    """What a process says of its part of a tensor."""

    kind: Kind
    value: int | str  # equal for equal bits


class ReplicaCheck:
    """Compares copies at an interval of steps, and then before every save too."""

    def __init__(
        self,
        tensors: Callable[[], Mapping[str, Tensor]],
        context: ParallelContext,
        *,
        interval: int | None,
        save_interval: int | None,
        joined: str | None,
    ) -> None:
        """tensors: this process's, DTensors of the grid. joined: how names end that both ends of a pipeline hold.

        interval None: never compare.
        """
        self._tensors, self._context = tensors, context
        self._interval, self._save_interval = interval, save_interval
        self._joined = joined
        if interval is not None:
            logger.info(
                f"copies     compared every {interval} steps: {self._coverage():.1%} of rank 0's values have some"
            )

    def is_due(self, iteration: int) -> bool:
        """Say whether the interval ends with this step."""
        return self._interval is not None and iteration % self._interval == 0

    def check_if_due(self, iteration: int, *, is_last: bool) -> None:
        """Compare if the interval ends with this step or it may be saved. Collective over the world when it is due.

        Raises the same TrainingError on every process where copies differ. Synchronises the device.
        """
        if self._interval is None:
            return
        saves = self._save_interval is not None and iteration % self._save_interval == 0
        if is_last or saves or self.is_due(iteration):
            self.check(iteration)

    def check(self, iteration: int) -> None:
        """Compare all copies. Collective over the world; errors as `check_if_due`.

        First by a hash over the tensors of a kind, a few hundred bytes a process, and by tensor only if some differ.
        """
        replicas = self._replicas()
        by_kind: dict[Kind, Any] = defaultdict(hashlib.sha256)
        for name, replica in replicas.items():
            by_kind[replica.kind].update(f"{name} {replica.value}\n".encode())
        digests = {" ".join(kind): Replica(kind, h.hexdigest()) for kind, h in by_kind.items()}
        if not different_copies(gather_everywhere(digests), self._places()):
            return
        different = different_copies(gather_everywhere(replicas), self._places())
        raise TrainingError(
            f"step {iteration}: copies of the same weights or moments differ, which means that a device computed or "
            f"stored something wrong: {'; '.join(describe_copies(different, gather_everywhere(socket.gethostname())))}. "
            "This state is not saved. Take these machines out and continue from the latest checkpoint; "
            "tools/verify.py replay tells whether a machine repeats its own steps"
        )

    def _replicas(self) -> dict[str, Replica]:
        """Sum up this process's parts. Synchronises the device."""
        tensors = self._tensors()
        return {
            name: Replica(self._kind(name, tensors[name]), value)
            for name, value in checksums_of(tensors).items()
        }

    def _kind(self, name: str, tensor: Tensor) -> Kind:
        assert isinstance(tensor, DTensor)
        placements = zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True)
        split = {axis for axis, placement in placements if not isinstance(placement, Replicate)}
        is_joined = self._joined is not None and name.endswith(self._joined)
        split |= set() if is_joined else {"pp"}
        return tuple(axis for axis in AXES if axis in split)

    def _places(self) -> list[dict[str, int]]:
        """Give the coordinates of every process of the world."""
        ranks = self._context.mesh.mesh
        places: list[dict[str, int]] = [{}] * ranks.numel()
        for place in torch.cartesian_prod(*map(torch.arange, ranks.shape)).tolist():
            places[int(ranks[tuple(place)])] = dict(zip(AXES, place, strict=True))
        return places

    def _coverage(self) -> float:
        """Give the share of this process's values of which another one holds a copy."""
        sizes = dict(zip(AXES, self._context.mesh.shape, strict=True))
        counts = [0, 0]
        for name, tensor in self._tensors().items():
            kind = self._kind(name, tensor)
            has_copy = any(size > 1 for axis, size in sizes.items() if axis not in kind)
            counts[has_copy] += local_part(tensor).numel()
        return counts[1] / max(1, sum(counts))


@dataclass(frozen=True)
class DifferentCopies:
    """A tensor, or a part of one, whose copies are not equal."""

    name: str
    values: dict[int, int | str]  # by rank

    @property
    def suspects(self) -> list[int]:
        """Ranks that more than half of the others contradict; all where there is no such majority."""
        (value, count), *_ = Counter(self.values.values()).most_common()
        if 2 * count <= len(self.values):
            return sorted(self.values)
        return sorted(rank for rank, other in self.values.items() if other != value)


def different_copies(
    found: Sequence[Mapping[str, Replica]], places: Sequence[Mapping[str, int]]
) -> list[DifferentCopies]:
    """Find what differs. found: by rank, what it holds by name; places: by rank, its coordinates."""
    groups: dict[tuple[str, Kind, tuple[int, ...]], dict[int, int | str]] = defaultdict(dict)
    for rank, replicas in enumerate(found):
        for name, replica in replicas.items():
            part = tuple(places[rank][axis] for axis in replica.kind)
            groups[name, replica.kind, part][rank] = replica.value
    return [
        DifferentCopies(name, values)
        for (name, _, _), values in groups.items()
        if len(set(values.values())) > 1
    ]


def describe_copies(different: Sequence[DifferentCopies], hosts: Sequence[str]) -> list[str]:
    """Name the processes that hold what most others do not, with their machine and tensors; pairs where none is most."""
    names: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for copies in different:
        suspects = copies.suspects
        if len(suspects) < len(copies.values):
            for rank in suspects:
                names[(rank,)].append(copies.name)
        else:
            names[tuple(suspects)].append(copies.name)
    lines = []
    for ranks, tensors in sorted(names.items()):
        who = ", ".join(f"rank {rank} (host {hosts[rank]})" for rank in ranks)
        what = first_of(tensors, _MAX_NAMED)
        lines.append(
            f"{who} differs from the others in {what}"
            if len(ranks) == 1
            else f"{who} differ, and no majority tells which is right, in {what}"
        )
    return lines
