"""The runs that are disturbed: a tiny model in several layouts, all of whose parts are those of a large one. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NUM_STEPS = 10
SAVE_INTERVAL = 2
MODEL_FLAGS = f"""--num-layers 2 --hidden-size 32 --num-attention-heads 4 --attention-head-type multiquery
--hidden-dropout 0.1 --attention-dropout 0.1 --seq-length 32 --max-position-embeddings 32
--micro-batch-size 1 --global-batch-size 4 --lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine
--lr-warmup-iters 2 --weight-decay 0.1 --train-iters {NUM_STEPS} --eval-interval 4 --eval-iters 1
--log-interval 1 --make-vocab-size-divisible-by 16 --fim-rate 0.5"""


@dataclass(frozen=True)
class Case:
    """A layout, and what else makes a run."""

    name: str
    world_size: int
    flags: str
    keep_last: int | None = None  # checkpoints

    def command(self, data_flags: Sequence[str], save: Path, save_interval: int) -> list[str]:
        """Give the flags of a run under save."""
        keep = [] if self.keep_last is None else ["--keep-last", str(self.keep_last)]
        return [
            *keep,
            *MODEL_FLAGS.split(),
            *self.flags.split(),
            *data_flags,
            *("--save", str(save), "--load", str(save), "--save-interval", str(save_interval)),
        ]


CASES = {
    case.name: case
    for case in (
        Case("one process, bf16, async save", 1, "--bf16 --num-workers 1 --async-save"),
        Case("one process", 1, "--num-workers 0", keep_last=1),
        Case("TP 2", 2, "--tensor-model-parallel-size 2 --num-workers 0 --exit-on-failed-save"),
        Case(
            "TP 2, sequence parallel, bf16, async save",
            2,
            "--tensor-model-parallel-size 2 --sequence-parallel --bf16 --num-workers 0 --async-save",
        ),
        Case("DP 2, sharded optimizer", 2, "--use-distributed-optimizer --num-workers 1"),
        Case(
            "PP 2, bf16, async save",
            2,
            "--pipeline-model-parallel-size 2 --bf16 --num-workers 0 --async-save",
            keep_last=2,
        ),
    )
}
