"""Copies that nobody waits for: the values arrive, and a GPU that is busy holds up neither side."""

import pytest
import torch

from megatron.transfer import HostCopy, to_device

CPU = torch.device("cpu")
BUSY_CYCLES = 1_000_000_000  # some half a second of a GPU


def test_what_lies_on_the_device_already_is_not_copied():
    x = torch.arange(6).view(2, 3)
    assert to_device(x, CPU) is x
    assert HostCopy(x).wait() is x


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float32])
def test_views_and_empty_tensors_arrive_on_a_gpu(dtype):
    device = torch.device("cuda", 0)
    whole = torch.arange(2 * 9).view(2, 9).to(dtype)
    for x in (whole, whole[:, 1:], whole[:, :0], whole.t()):
        arrived = to_device(x, device)
        assert (arrived.device, arrived.dtype) == (device, dtype)
        assert torch.equal(arrived.cpu(), x) and torch.equal(HostCopy(arrived).wait(), x)


@pytest.mark.gpu
def test_a_busy_gpu_holds_up_no_copy():
    device = torch.device("cuda", 0)
    host = torch.arange(1 << 22)
    early = to_device(host, device)
    HostCopy(early).wait()  # pinned memory is at hand from here on
    torch.cuda.synchronize()
    before = HostCopy(early.sum())
    torch.cuda._sleep(BUSY_CYCLES)
    is_free = torch.cuda.Event()
    is_free.record()
    arrived = to_device(host + 1, device)
    after = HostCopy(arrived.sum())
    assert before.wait() == host.sum()
    assert not is_free.query()  # neither waited for what was queued between them
    assert after.wait() == host.sum() + len(host)
    assert is_free.query()
