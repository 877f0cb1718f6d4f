"""A run that goes on with other kernels or on another processor, or whose processes differ, says so and goes on."""

import json
import logging
from unittest import mock

import torch

from megatron.checkpoint.layout import checkpoint_folder
from megatron.training import kernel_record
from megatron.training.kernel_record import KERNELS, describe_changes, describe_differences
from tests.training.runs import flags_of, train_here

OURS = "AuthenticAMD AVX512"


def train_logged(rank, flags, processor):
    """Give the warnings of a run on a processor of that name."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("megatron")
    logger.addHandler(handler)
    try:
        with mock.patch.object(kernel_record, "processor_name", lambda device: processor):
            train_here(rank, flags)
    finally:
        logger.removeHandler(handler)
    return [line for line in lines if "kernels" in line]


def test_a_resume_with_other_kernels_names_them_and_one_with_the_same_says_nothing(
    world, corpus, tmp_path
):
    def run_a_step(attention="sdpa", processor=OURS):
        extra = f"--exit-interval 1 --eval-iters 0 --attention-backend {attention}"
        flags = flags_of(corpus, tmp_path, extra)
        return world(1).run(train_logged, flags, processor)[0]

    assert run_a_step() == []
    state = json.loads((checkpoint_folder(tmp_path, 1) / "state.json").read_text())
    assert state[KERNELS]["attention"] == "sdpa" and "layer_norm" in state[KERNELS]
    assert state[KERNELS]["processor"] == OURS and state[KERNELS]["torch"] == torch.__version__
    assert run_a_step() == []
    (warning,) = run_a_step("explicit", "GenuineIntel AVX2")
    assert "attention was sdpa, is explicit" in warning and "iter_0000002" in warning
    assert f"processor was {OURS}, is GenuineIntel AVX2" in warning


def test_what_a_checkpoint_does_not_name_has_not_changed():
    ours = {"bias_gelu": "reference", "layer_norm": "fused", "processor": OURS}
    assert describe_changes({}, ours) == ""
    before = {KERNELS: {"bias_gelu": "fused", "layer_norm": "fused", "softmax": "fused"}}
    assert describe_changes(before, ours) == "bias_gelu was fused, is reference"


def test_hosts_that_compute_otherwise_are_named():
    one, other = {"bias_gelu": "fused", "layer_norm": "fused"}, {"bias_gelu": "reference"}
    assert describe_differences([("a", one), ("b", one)]) == ""
    found = describe_differences([("a", one), ("b", one), ("c", other), ("c", other)])
    assert found == "bias_gelu is fused on a, b and reference on c"
