"""What stays on the host on its way into a wrapped model."""

import torch
from torch import nn

from megatron.parallel.data_parallel import keep_on_host


class Echo(nn.Module):
    def forward(self, x, **named):
        return x, named


def test_named_tensors_of_the_host_pass_by_hooks_that_would_move_them():
    model, seen = Echo(), []

    def move(module, args, kwargs):
        seen.extend(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {
            name: value.to("meta") if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }

    model.register_forward_pre_hook(move, prepend=True, with_kwargs=True)
    keep_on_host(model)
    starts, labels = torch.arange(3), torch.arange(3, device="meta")
    x, named = model(torch.ones(2), starts=starts, labels=labels, window=4)
    assert seen == ["labels"]
    assert named["starts"] is starts and named["labels"].device.type == "meta"
    assert named["window"] == 4 and torch.equal(x, torch.ones(2))
