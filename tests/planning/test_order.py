"""Orders of passes are those that torch runs; idle time and activations held are what the schedules' papers say."""

import itertools

import pytest
from torch.distributed.pipelining import Schedule1F1B

from megatron.planning.order import (
    Pass,
    join_halves,
    most_in_flight,
    order_passes,
    run_passes,
)

FORWARD, BACKWARD = 3.0, 7.0  # of a rank's layers


def _durations(num_stages, chunks):
    """Times of a stage; a split backward pass is cut in halves."""
    times = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD / 2, "W": BACKWARD / 2}
    return {(kind, s): time / chunks for kind, time in times.items() for s in range(num_stages)}


@pytest.mark.parametrize(("num_ranks", "number"), [(2, 2), (3, 5), (4, 16)])
def test_idle_time_of_1f1b_is_its_formula(num_ranks, number):
    orders = order_passes("1f1b", num_ranks, num_ranks, number)
    timeline = run_passes(orders, _durations(num_ranks, 1), 0.0)
    # arXiv 2104.04473, section 2.2.1: (p - 1) (F + B) beside the m (F + B) of work
    assert timeline.seconds == pytest.approx((number + num_ranks - 1) * (FORWARD + BACKWARD))
    assert timeline.bubble == pytest.approx((num_ranks - 1) / (number + num_ranks - 1))


@pytest.mark.parametrize(("num_ranks", "number", "chunks"), [(2, 4, 3), (4, 16, 2)])
def test_idle_time_of_an_interleaved_pipeline_is_its_formula(num_ranks, number, chunks):
    num_stages = num_ranks * chunks
    orders = order_passes("interleaved", num_ranks, num_stages, number)
    timeline = run_passes(orders, _durations(num_stages, chunks), 0.0)
    # arXiv 2104.04473, section 2.2.2: the bubble is divided by the chunks
    idle = (num_ranks - 1) * (FORWARD + BACKWARD) / chunks
    assert timeline.seconds == pytest.approx(number * (FORWARD + BACKWARD) + idle)


def test_transfers_delay_a_pipeline_once_a_boundary_and_direction():
    (orders, durations) = order_passes("1f1b", 3, 3, 3), _durations(3, 1)
    without, late = (run_passes(orders, durations, delay).seconds for delay in (0.0, 0.5))
    assert late - without >= 4 * 0.5 - 1e-9  # two boundaries there, two back


@pytest.mark.parametrize(
    ("num_ranks", "number", "split", "whole"),
    [(2, 8, 0.02, 0.08), (4, 16, 0.03, 0.11), (8, 32, 0.04, 0.13)],
)
def test_halves_that_are_joined_idle_longer_by_the_table_of_docs_pipeline(
    num_ranks, number, split, whole
):
    num_stages = 2 * num_ranks
    durations = dict.fromkeys(itertools.product("FIW", range(num_stages)), 1.0)
    durations |= dict.fromkeys(itertools.product("B", range(num_stages)), 2.0)
    orders = order_passes("zbv", num_ranks, num_stages, number)
    joined = [join_halves(order) for order in orders]
    bubbles = [run_passes(one, durations, 0.0).bubble for one in (orders, joined)]
    assert [round(bubble, 2) for bubble in bubbles] == [split, whole]


@pytest.mark.parametrize(
    ("schedule", "chunks", "most"),
    [("1f1b", 1, 4), ("interleaved", 2, 4 + 3 / 2), ("zbv", 2, 4), ("dualpipev", 2, 4.5)],
)
def test_activations_held_are_those_of_docs_pipeline(schedule, chunks, most):
    num_stages = 4 * chunks
    orders = order_passes(schedule, 4, num_stages, 16)
    sizes = dict.fromkeys(range(num_stages), 1 / chunks)
    assert max(most_in_flight(order, sizes) for order in orders) == most


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv", "dualpipev"])
def test_every_micro_batch_passes_every_stage_once_each_way(schedule):
    num_stages = 2 if schedule == "1f1b" else 4
    orders = order_passes(schedule, 2, num_stages, 6)
    passes = [one for order in orders for one in order]
    expected = {(stage, number) for stage in range(num_stages) for number in range(6)}
    for kinds in ("F", "BI", "BW"):
        found = [(one.stage, one.micro_batch) for one in passes if one.kind in kinds]
        assert len(found) == len(expected) and set(found) == expected


class _Recorded(Schedule1F1B):
    """torch's schedule with a stage that writes down what it is asked for."""

    def __init__(self, rank, num_ranks, number):
        self.passes = []
        self._stage = self
        self.stage_index = rank
        self._num_stages, self._n_microbatches = num_ranks, number

    def _check_inputs(self, *args):
        return [()] * self._n_microbatches, [{}] * self._n_microbatches

    def forward_one_chunk(self, number, *args, **kwargs):
        self.passes.append(Pass("F", self.stage_index, number))

    def backward_one_chunk(self, number, **kwargs):
        self.passes.append(Pass("B", self.stage_index, number))

    def _nothing(self, *args, **kwargs):
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _nothing
    _initialize_stage = _maybe_compute_loss = _maybe_get_loss = _update_losses = _nothing
    perform_reduce_grad = scale_grads = _nothing
    grad_scale = False


@pytest.mark.parametrize("rank", range(3))
def test_1f1b_runs_in_torchs_order(rank):
    recorded = _Recorded(rank, 3, 5)
    recorded._step_microbatches()
    assert order_passes("1f1b", 3, 3, 5)[rank] == recorded.passes
