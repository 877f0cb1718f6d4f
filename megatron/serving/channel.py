"""What the process that talks to clients tells those that share the model with it: the same requests at the same step.

Goes over the CPU's process group, as tokens do. The others wait in a collective, so the first process lets them hear
something every second, also when there is nothing to do. Where one is lost, all are: a launcher starts them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import torch
import torch.distributed as dist

from megatron.inference.options import SamplingOptions
from megatron.inference.request import Request
from megatron.parallel.launch import Launch
from megatron.parallel.lost_peer import check_launcher

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Orders:
    """What changes before a step."""

    added: tuple[Request, ...] = ()
    cancelled: tuple[str, ...] = ()  # names; of those just added, too
    is_end: bool = False

    def to_bytes(self) -> bytes:
        """Spell them; nothing takes no bytes."""
        if self == Orders():
            return b""
        added = [_to_json(request) for request in self.added]
        return orjson.dumps({"added": added, "cancelled": self.cancelled, "is_end": self.is_end})

    @classmethod
    def from_bytes(cls, data: bytes) -> Orders:
        if not data:
            return cls()
        values = orjson.loads(data)
        added = tuple(map(_from_json, values["added"]))
        return cls(added, tuple(values["cancelled"]), values["is_end"])


class Channel:
    """From the first process to all. Collective over the world."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @property
    def heartbeat_seconds(self) -> float | None:
        """How long the others may be left without a word; None: there are none."""
        return HEARTBEAT_SECONDS if self._launch.world_size > 1 else None

    def meet(self) -> None:
        """Wait until all are ready to be told: who is served earlier would wait for them. Collective over the world."""
        if self._launch.world_size > 1:
            dist.all_reduce(torch.zeros(1))

    def tell(self, orders: Orders) -> None:
        """Send orders; the first process calls it. Collective over the world.

        Raises LostPeer, before any collective, if the launcher is gone: nobody would end the processes.
        """
        if self._launch.world_size == 1:
            return
        check_launcher(self._launch)
        data = orders.to_bytes()
        dist.broadcast(torch.tensor([len(data)]), src=0)
        if data:
            dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), src=0)

    def hear(self) -> Orders:
        """Wait for orders; all but the first process call it. Collective over the world."""
        size = torch.empty(1, dtype=torch.int64)
        dist.broadcast(size, src=0)
        data = torch.empty(int(size), dtype=torch.uint8)
        if len(data):
            dist.broadcast(data, src=0)
        return Orders.from_bytes(data.numpy().tobytes())


def _to_json(request: Request) -> Mapping[str, Any]:
    return {
        "name": request.name,
        "prompt": request.prompt,
        "options": dataclasses.asdict(request.options),
        "num_samples": request.num_samples,
        "end_ids": sorted(request.end_ids),
        "client": request.client,
    }


def _from_json(values: Mapping[str, Any]) -> Request:
    options = SamplingOptions(**{**values["options"], "stop": tuple(values["options"]["stop"])})
    return Request(
        values["name"],
        tuple(values["prompt"]),
        options,
        values["num_samples"],
        frozenset(values["end_ids"]),
        values["client"],
    )
