"""Processes that share layers or the stack of layers write what one process writes."""

import pytest
import torch

from megatron.inference.options import MAX_LOGPROBS
from tests.grid import grid
from tests.inference.models import (
    ARCHITECTURES,
    TOLERANCE,
    make_model,
    open_engine,
    random_prompt,
    request,
)

REQUESTS = [
    request("greedy", random_prompt(6), logprobs=2),
    request("drawn", random_prompt(21), 3, temperature=0.9, top_p=0.9, repetition_penalty=1.2),
    request("scored", random_prompt(20), logprobs=MAX_LOGPROBS, prompt_logprobs=True),
]
LAYOUTS = {"tp": {"tp": 2}, "pp": {"pp": 2}}
KINDS = ARCHITECTURES | {
    # heads 0 to 2 here and 3 to 5 there: the middle group is on both, and serves one of each's heads
    "groups across processes": {
        "num_attention_heads": 6,
        "num_query_groups": 3,
        "attention_head_type": "multihead",
        "hidden_size": 24,
    },
}


def write(rank, path, layout):
    return open_engine(path, grid(**layout)).run(REQUESTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_writes_what_one_process_does(world, tmp_path, layout, kind):
    changes = {"num_attention_heads": 4, "hidden_size": 16} | KINDS[kind]
    path = make_model(tmp_path / "run", **changes)
    (alone,) = world(1).run(write, path, {})
    for together in world(2).run(write, path, LAYOUTS[layout]):
        for ours, expected in zip(together, alone, strict=True):
            assert ours.token_ids == expected.token_ids
            assert ours.text == expected.text
            assert len(ours.scores) == len(expected.scores)
            for name in ("scores", "prompt_scores"):
                mine, theirs = getattr(ours, name), getattr(expected, name)
                torch.testing.assert_close(
                    torch.tensor([one.logprob for one in mine]),
                    torch.tensor([one.logprob for one in theirs]),
                    rtol=0,
                    atol=TOLERANCE,
                )
                assert [len(one.top) for one in mine] == [len(one.top) for one in theirs]
