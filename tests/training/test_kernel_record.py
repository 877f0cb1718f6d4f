"""A run that goes on with other kernels, or whose processes have different ones, says so and goes on."""

import json
import logging

from megatron.checkpoint.layout import checkpoint_folder
from megatron.training.kernel_record import KERNELS, describe_changes, describe_differences
from tests.training.runs import flags_of, train_here


def train_logged(rank, flags):
    """Give the warnings of a run."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("megatron")
    logger.addHandler(handler)
    try:
        train_here(rank, flags)
    finally:
        logger.removeHandler(handler)
    return [line for line in lines if "kernels" in line]


def test_a_resume_with_other_kernels_names_them_and_one_with_the_same_says_nothing(
    world, corpus, tmp_path
):
    def run_a_step(attention="sdpa"):
        extra = f"--exit-interval 1 --eval-iters 0 --attention-backend {attention}"
        flags = flags_of(corpus, tmp_path, extra)
        return world(1).run(train_logged, flags)[0]

    assert run_a_step() == []
    state = json.loads((checkpoint_folder(tmp_path, 1) / "state.json").read_text())
    assert state[KERNELS]["attention"] == "sdpa" and "layer_norm" in state[KERNELS]
    assert run_a_step() == []
    (warning,) = run_a_step("explicit")
    assert "attention by sdpa, now by explicit" in warning and "iter_0000002" in warning


def test_what_a_checkpoint_does_not_name_has_not_changed():
    assert describe_changes({}, {"bias_gelu": "fused"}) == ""
    before = {KERNELS: {"bias_gelu": "fused", "layer_norm": "fused", "softmax": "fused"}}
    ours = {"bias_gelu": "reference", "layer_norm": "fused"}
    assert describe_changes(before, ours) == "bias_gelu by fused, now by reference"


def test_hosts_that_compute_otherwise_are_named():
    one, other = {"bias_gelu": "fused", "layer_norm": "fused"}, {"bias_gelu": "reference"}
    assert describe_differences([("a", one), ("b", one)]) == ""
    found = describe_differences([("a", one), ("b", one), ("c", other), ("c", other)])
    assert found == "bias_gelu is fused on a, b and reference on c"
