"""On a GPU the host waits for nothing in a step: it queues the next while the device is busy with the last."""

import functools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from megatron.options import ParallelConfig
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.launch import Launch
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.spike import SpikeLimits
from megatron.training.start import plan_start
from megatron.training.step import train_step
from tests.training.runs import flags_of, parse

BUSY_CYCLES = 4_000_000_000  # some two seconds of a GPU: the host queues a step in less
NUM_WARM_STEPS, BATCH = 4, 2
# One step of one micro-batch: a GPU takes about a thousand operations ahead, and then the host waits after all.
SMALL = f"--num-layers 2 --micro-batch-size {BATCH} --global-batch-size {BATCH} --eval-iters 0"
CASES = {
    "fp32": "",
    "bf16, two workers": "--bf16 --num-workers 2",
    "a fixed loss scale": "--fp16 --loss-scale 1024",
    "dropout": "--bf16 --hidden-dropout 0.1 --attention-dropout 0.1",
    "documents": "--bf16 --reset-position-ids --reset-attention-mask",
    "documents and a window": "--bf16 --reset-attention-mask --window-size 9",
    "rotary positions, heads in groups": "--bf16 --position-embedding-type rope "
    "--attention-head-type multihead --num-query-groups 2",
    "recomputation": "--bf16 --recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1",
}


@functools.cache
def _context() -> ParallelContext:
    """Join a world of one on the GPU, once in a process."""
    config = ParallelConfig()
    return ParallelContext.create(config, 1, initialize_distributed(config, Launch()))


def queue_a_step(flags: str) -> list[float]:
    """Take steps, the last one on a GPU that is busy; give their losses."""
    inputs = open_inputs(parse(flags), 1)
    run = build_run(inputs, plan_start(inputs, 1), _context())

    def step(number: int):
        return train_step(
            run.parts,
            run.loader.batch(BATCH * number, BATCH),
            consumed_samples=BATCH * number,
            global_batch_size=BATCH,
            limits=SpikeLimits(loss=100.0, gradient_norm=1e6),
        )

    results = [step(number).read() for number in range(NUM_WARM_STEPS)]
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    is_free = torch.cuda.Event()
    is_free.record()
    # names what waits where torch knows of it; a copy from ordinary memory only the event shows
    torch.cuda.set_sync_debug_mode("error")
    try:
        last = step(NUM_WARM_STEPS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not is_free.query(), "the host waited for the device in a step"
    results.append(last.read())
    run.close()
    assert not any(result.is_skipped for result in results)
    return [result.loss for result in results]


@pytest.fixture(scope="module")
def gpu_process():
    """A process that may use the GPU, while those of other tests are forked."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_queued_while_the_gpu_is_busy(gpu_process, corpus, tmp_path, case):
    flags = flags_of(corpus, tmp_path, f"--train-data-path {corpus.short} {SMALL} {CASES[case]}")
    losses = gpu_process.submit(queue_a_step, flags).result()
    assert len(losses) == NUM_WARM_STEPS + 1 and all(map(math.isfinite, losses))
