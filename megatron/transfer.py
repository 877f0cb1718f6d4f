"""Copies between the host and a device for which neither waits.

Only a copy from or to pinned memory goes on by itself: one from ordinary memory holds the host until the device has
done all that it was given before. Knows nothing of what is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy x to a device, through pinned memory if it is a GPU; x itself if it lies there already."""
    if device.type == "cuda" and x.device.type == "cpu":
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        x = pinned.copy_(x)  # torch keeps the memory until the device has read it
    return x.to(device, non_blocking=True)


class HostCopy:
    """A tensor of a device on its way to the host, as it is when the device gets there."""

    def __init__(self, x: Tensor) -> None:
        """Queue the copy behind what the current stream has to do."""
        self._copy = x.to("cpu", non_blocking=True)  # pinned, if it comes from a GPU
        self._is_done: torch.cuda.Event | None = None
        if x.device.type == "cuda":
            self._is_done = torch.cuda.Event()
            self._is_done.record(torch.cuda.current_stream(x.device))

    def wait(self) -> Tensor:
        """Give the values. Waits for what was queued before the copy, not for anything after it."""
        if self._is_done is not None:
            self._is_done.synchronize()
        return self._copy
