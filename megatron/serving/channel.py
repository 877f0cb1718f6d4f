"""What the process that talks to clients tells those that share the model with it: the same requests at the same step.

Goes over the CPU's process group, as tokens do. The others wait in a collective, so the first process lets them hear
something every second, also when there is nothing to do.
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

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size

    @property
    def heartbeat_seconds(self) -> float | None:
        """How long the others may be left without a word; None: there are none."""
        return HEARTBEAT_SECONDS if self._world_size > 1 else None

    def tell(self, orders: Orders) -> None:
        """Send orders; the first process calls it. Collective over the world."""
        if self._world_size == 1:
            return
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
    }


def _from_json(values: Mapping[str, Any]) -> Request:
    options = SamplingOptions(**{**values["options"], "stop": tuple(values["options"]["stop"])})
    return Request(
        values["name"],
        tuple(values["prompt"]),
        options,
        values["num_samples"],
        frozenset(values["end_ids"]),
    )
