"""The models whose training step is measured, as training flags: the published sizes, and two for a CPU.

The flags of a published size are those of its recipe in examples/pretrain_starcoder.sh, which says where each number
was published; a test holds them equal. Left out is what a measurement decides for itself: layout, batch, length.
"""

from __future__ import annotations

from dataclasses import dataclass

VOCAB_SIZE = 49152  # StarCoder §5.3


_PAPER = "StarCoder §5.4 to §5.6"  # arXiv 2305.06161
_LAUNCH_FILE = "BigCode's launch file of the size"


@dataclass(frozen=True)
class Shape:
    """A model, and the batch it is measured with unless another is asked for."""

    source: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    seq_length: int
    init_method_std: float
    lr: float
    dropout: float
    micro_batch_size: int
    num_micro_batches: int  # of a process and step
    num_workers: int = 2  # of the loader
    vocab_size: int = VOCAB_SIZE  # ids of the data that is made where none is given

    @property
    def is_published(self) -> bool:
        """Whether it was trained as StarCoder was, in bf16."""
        return self.source in (_PAPER, _LAUNCH_FILE)

    def flags(self) -> list[str]:
        """Give the flags of the run, but for its batch and its data."""
        values = {
            "--num-layers": self.num_layers,
            "--hidden-size": self.hidden_size,
            "--num-attention-heads": self.num_attention_heads,
            "--attention-head-type": "multiquery",
            "--init-method-std": self.init_method_std,
            "--seq-length": self.seq_length,
            "--max-position-embeddings": self.seq_length,
            "--attention-dropout": self.dropout,
            "--hidden-dropout": self.dropout,
            "--lr": self.lr,
            "--min-lr": f"{self.lr / 10:g}",
            "--lr-decay-style": "cosine",
            "--adam-beta1": 0.9,
            "--adam-beta2": 0.95,
            "--adam-eps": 1e-8,
            "--weight-decay": 0.1,
            "--clip-grad": 1.0,
            "--fim-rate": 0.5,
            "--num-workers": self.num_workers,
        }
        return [word for flag, value in values.items() for word in (flag, str(value))]


SHAPES = {
    "tiny": Shape(
        "MODEL=tiny of examples/pretrain_starcoder.sh",
        *(4, 256, 8, 256, 0.0625, 3e-3, 0.0),
        micro_batch_size=4,
        num_micro_batches=1,
        num_workers=0,
        vocab_size=4096,
    ),
    "110m": Shape(
        "GPT-2's smallest, for a CPU",
        *(12, 768, 12, 1024, 0.036, 6e-4, 0.1),
        micro_batch_size=1,
        num_micro_batches=1,
        num_workers=0,
    ),
    "1b": Shape(_LAUNCH_FILE, 24, 2048, 16, 8192, 0.02209, 4e-4, 0.1, 4, 4),
    "3b": Shape(_LAUNCH_FILE, 36, 2816, 22, 8192, 0.01884, 5e-4, 0.1, 2, 4),
    "7b": Shape(_LAUNCH_FILE, 42, 4096, 32, 8192, 0.015625, 3e-4, 0.1, 1, 4),
    "15b": Shape(_PAPER, 40, 6144, 48, 8192, 0.01275, 3e-4, 0.1, 1, 4),
}
