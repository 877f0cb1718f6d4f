"""A process group for tests whose processes exchange tensors through memory that all of them map.

A collective of gloo takes milliseconds where more processes than cores wait for each other, and the proof that layouts
are equal is made of collectives. Here one takes its copies and a POSIX semaphore for each pair of processes, on which
those that wait sleep. Sums are taken in rank order, in the tensor's dtype. Processes that are not in the same
collective with equally many bytes get an error. Linux and CPU only; knows nothing of who calls it.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

BACKEND = "shared_memory"
SEMAPHORE_BYTES = 64  # a cache line; sem_t takes 32 of them
TENSOR_BYTES = 16 << 20  # of a process in a collective: pages that nobody writes to take no memory
MESSAGE_BYTES = 1 << 20
NUM_MESSAGES = 32  # on their way from one process to another
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "barrier",
    "broadcast",
    "gather",
    "reduce_scatter",
    "scatter",
)

_libc = ctypes.CDLL(None, use_errno=True)
_post, _try_wait, _wait_until = _libc.sem_post, _libc.sem_trywait, _libc.sem_timedwait
_post.argtypes = _try_wait.argtypes = [ctypes.c_void_p]
_wait_until.argtypes = [ctypes.c_void_p, ctypes.c_void_p]


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Done(dist.Work):
    """What has happened by the time it is returned."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True


class _Receipt(dist.Work):
    """A message that was asked for, and lies in `tensor` once somebody waited for it."""

    def __init__(self, tensor: Tensor, receive: Callable[[_Receipt], None]) -> None:
        super().__init__()
        self.tensor = tensor
        self.is_here = False
        self._receive = receive

    def wait(self, timeout: timedelta | None = None) -> bool:
        if not self.is_here:
            self._receive(self)
        return True


class SharedMemoryGroup(dist.ProcessGroup):
    """One process's end of the memory.

    There is a semaphore for each (kind, from, to); for each (turn, rank) a number that says which collective it is in,
    and its tensor; and for each (from, to) a ring of messages. There are two turns, for who has left a collective may
    enter the next while others still read this one. Nobody enters the one after before all have entered the next.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._rank, self._size, self._timeout = rank, size, timeout.total_seconds()
        lengths = (
            3 * size * size * SEMAPHORE_BYTES,
            2 * size * SEMAPHORE_BYTES,
            2 * size * TENSOR_BYTES,
            size * size * NUM_MESSAGES * MESSAGE_BYTES,
        )
        if rank == 0:
            descriptor = os.memfd_create(BACKEND)
            os.ftruncate(descriptor, sum(lengths))
        else:
            descriptor = os.open(store.get("memory"), os.O_RDWR)
        memory = torch.frombuffer(mmap.mmap(descriptor, 0), dtype=torch.uint8)
        self._address = memory.data_ptr()
        if rank == 0:
            self._make_semaphores()
            store.set("memory", f"/proc/{os.getpid()}/fd/{descriptor}")
        _, calls, tensors, messages = memory.split(lengths)
        self._calls = memoryview(calls.view(torch.int64).numpy())
        self._tensors = tensors.view(2, size, TENSOR_BYTES)
        self._messages = messages.view(size, size, NUM_MESSAGES, MESSAGE_BYTES)
        others = [other for other in range(size) if other != rank]
        self._bells = [self._semaphore("met", rank, other) for other in others]
        self._doors = [(other, self._semaphore("met", other, rank)) for other in others]
        self._turn = 0
        self._num_sent, self._num_received = [0] * size, [0] * size
        self._receipts: list[deque[_Receipt]] = [deque() for _ in range(size)]
        self._meet()
        os.close(descriptor)  # the memory lives for as long as somebody maps it

    def _make_semaphores(self) -> None:
        for kind, value in (("met", 0), ("sent", 0), ("free", NUM_MESSAGES)):
            for source, to in itertools.product(range(self._size), repeat=2):
                _libc.sem_init(ctypes.c_void_p(self._semaphore(kind, source, to)), 1, value)

    def _semaphore(self, kind: str, source: int, to: int) -> int:
        """Give the address of the one that counts what source has done for `to`, or the places free for that."""
        row = ("met", "sent", "free").index(kind)
        return self._address + ((row * self._size + source) * self._size + to) * SEMAPHORE_BYTES

    def getBackendName(self) -> str:
        return BACKEND

    # torch keeps the name with a group's backends, and this one has none
    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:
        return self._name

    def _wait_for(self, other: int, semaphore: int) -> None:
        if _try_wait(semaphore) == 0:
            return
        seconds, rest = divmod(time.time() + self._timeout, 1)
        deadline = _TimeSpec(int(seconds), int(rest * 1e9))
        while _wait_until(semaphore, ctypes.addressof(deadline)) != 0:
            if ctypes.get_errno() != errno.EINTR:
                raise RuntimeError(f"rank {self._rank} waited {self._timeout} s for rank {other}")

    def _meet(self) -> None:
        """Wait until all processes are here; what each wrote before, all can read."""
        for bell in self._bells:
            _post(bell)
        for other, door in self._doors:
            self._wait_for(other, door)

    def _exchange(self, collective: str, tensor: Tensor) -> Sequence[Tensor]:
        """Give the tensor of each process, flat; readable until the next collective but one."""
        num_elements = tensor.numel()
        num_bytes = num_elements * tensor.element_size()
        assert num_bytes <= TENSOR_BYTES
        first, rows = self._turn * self._size, self._tensors[self._turn]
        rows = rows.view(tensor.dtype)[:, :num_elements]
        self._turn = 1 - self._turn
        call = len(COLLECTIVES) * num_bytes + COLLECTIVES.index(collective)
        self._calls[first + self._rank] = call
        _fill(rows[self._rank], tensor)
        self._meet()
        calls = self._calls[first : first + self._size].tolist()
        if calls.count(call) < self._size:
            names = [f"{COLLECTIVES[n % len(COLLECTIVES)]} {n // len(COLLECTIVES)}" for n in calls]
            raise RuntimeError(f"processes are out of step, in (collective, bytes) {names}")
        return rows.unbind()

    def allreduce(self, tensors, opts):
        _require_sum(opts)
        for tensor in tensors:
            _fill(tensor, _sum(self._exchange("all_reduce", tensor)))
        return _Done()

    def barrier(self, opts=None):
        self._exchange("barrier", torch.empty(0))
        return _Done()

    def broadcast(self, tensors, opts):
        for tensor in tensors:
            _fill(tensor, self._exchange("broadcast", tensor)[opts.rootRank])
        return _Done()

    def allgather(self, output_lists, tensors, opts=None):
        for outputs, tensor in zip(output_lists, tensors, strict=True):
            for output, row in zip(outputs, self._exchange("all_gather", tensor), strict=True):
                _fill(output, row)
        return _Done()

    def gather(self, output_lists, tensors, opts):
        rows = self._exchange("gather", *tensors)
        for outputs in output_lists:  # none, except on the root
            for output, row in zip(outputs, rows, strict=True):
                _fill(output, row)
        return _Done()

    def scatter(self, outputs, tensor_lists, opts):
        (output,) = outputs
        rows = output.new_zeros(self._size, output.numel())
        for number, row in enumerate(itertools.chain(*tensor_lists)):  # none, except on the root
            _fill(rows[number], row)
        sent = self._exchange("scatter", rows)[opts.rootRank]
        _fill(output, sent.view_as(rows)[self._rank])
        return _Done()

    def all_gather_single(self, output, tensor, opts=None):
        _fill(output, torch.cat(self._exchange("all_gather", tensor)))
        return _Done()

    def all_gather_single_coalesced(self, outputs, tensors, opts=None):
        for output, tensor in zip(outputs, tensors, strict=True):
            self.all_gather_single(output, tensor)
        return _Done()

    def reduce_scatter_single(self, output, tensor, opts):
        _require_sum(opts)
        first, last = self._rank * output.numel(), (self._rank + 1) * output.numel()
        rows = self._exchange("reduce_scatter", tensor)
        _fill(output, _sum([row[first:last] for row in rows]))
        return _Done()

    def reduce_scatter_single_coalesced(self, outputs, tensors, opts):
        for output, tensor in zip(outputs, tensors, strict=True):
            self.reduce_scatter_single(output, tensor, opts)
        return _Done()

    # torch 2.11 calls them by these names
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def send(self, tensors, to, tag):
        """Put a message on its way; waits only where NUM_MESSAGES are on it. Order counts, tags do not."""
        (tensor,) = tensors
        self._wait_for(to, self._semaphore("free", self._rank, to))
        _fill(self._message(self._rank, to, self._num_sent[to], tensor), tensor)
        self._num_sent[to] += 1
        _post(self._semaphore("sent", self._rank, to))
        return _Done()

    def recv(self, tensors, source, tag):
        """Ask for the next message that nobody has asked for. It is fetched when somebody waits for it."""
        (tensor,) = tensors
        receipt = _Receipt(tensor, lambda wanted: self._receive(source, wanted))
        self._receipts[source].append(receipt)
        return receipt

    def _receive(self, source: int, wanted: _Receipt) -> None:
        while not wanted.is_here:
            receipt = self._receipts[source].popleft()
            self._wait_for(source, self._semaphore("sent", source, self._rank))
            number = self._num_received[source]
            _fill(receipt.tensor, self._message(source, self._rank, number, receipt.tensor))
            self._num_received[source] += 1
            _post(self._semaphore("free", source, self._rank))
            receipt.is_here = True

    def _message(self, source: int, to: int, number: int, like: Tensor) -> Tensor:
        num_bytes = like.numel() * like.element_size()
        assert num_bytes <= MESSAGE_BYTES
        return self._messages[source, to, number % NUM_MESSAGES, :num_bytes].view(like.dtype)


def _fill(output: Tensor, value: Tensor) -> None:
    output.detach().copy_(value.detach().reshape(output.shape))


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total


def _require_sum(opts: dist.AllreduceOptions | dist.ReduceScatterOptions) -> None:
    if opts.reduceOp != dist.ReduceOp.SUM:
        raise NotImplementedError(f"only sums are taken in shared memory, not {opts.reduceOp}")


def register() -> None:
    """Let init_process_group(BACKEND), and the groups that are made after it, be of this kind in this process."""
    dist.Backend.register_backend(BACKEND, SharedMemoryGroup, devices=["cpu"])
