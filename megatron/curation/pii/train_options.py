"""What `curate.py pii-train` is told. Knows nothing of how a model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.curation.pii.spans import LABELS
from megatron.option_field import check_bounds, option, require


@dataclass(frozen=True)
class PiiTrainConfig:
    """From what a model begins, and how it is trained; StarPII's settings where it has some."""

    encoder: str | None = option(
        None, "local folder of a Hugging Face encoder to begin from (StarEncoder, …)", metavar="DIR"
    )
    tokenizer_file: str | None = option(
        None, "tokenizer.json of a new small model, where there is no --encoder", metavar="FILE"
    )
    hidden_size: int = option(256, "of a new model", minimum=8)
    num_layers: int = option(4, "of a new model", minimum=1)
    num_heads: int = option(4, "of a new model", minimum=1)
    dropout: float = option(0.1, "of a new model", minimum=0, below=1)
    labels: tuple[str, ...] = option(LABELS, "what is learned; other spans count as nothing")
    validation: float = option(0.1, "part of the records that is held out", above=0, below=1)
    window: int = option(512, "tokens that the model reads at once", minimum=16)
    overlap: int = option(128, "tokens that two windows share", minimum=0)
    train_batch: int = option(64, "windows in a step (StarPII: 64)", minimum=1)
    epochs: int = option(10, "times that all windows are read", minimum=1)
    learning_rate: float = option(2e-5, "peak (StarPII: 2e-5; a new model wants 1e-3)", above=0)
    warmup: int = option(100, "steps until the peak; a cosine to 0 follows", minimum=0)
    weight_decay: float = option(0.01, "of matrices", minimum=0)
    class_weights: Literal["none", "root"] = option(
        "none",
        "root: a class counts by the root of how rare it is, up to 20-fold: more is found, and more falsely",
    )
    patience: int = option(3, "epochs without a better F1 that end the run", minimum=1)
    seed: int = option(1, "of everything random", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where it is trained")
    bf16: bool = option(False, "products in bf16")

    def check(self) -> None:
        """Raise ConfigError for what cannot be trained."""
        check_bounds(self)
        require(
            (self.encoder is None) != (self.tokenizer_file is None),
            "give --encoder DIR to fine-tune, or --tokenizer-file FILE to begin a new small model: one of them",
        )
        require(
            self.encoder is None or (Path(self.encoder) / "config.json").is_file(),
            f"--encoder {self.encoder} is no folder with a config.json; nothing is downloaded: give a local one",
        )
        require(
            self.tokenizer_file is None or Path(self.tokenizer_file).is_file(),
            f"--tokenizer-file {self.tokenizer_file} is not a file; tools/train_tokenizer.py makes one",
        )
        require(self.overlap * 2 <= self.window, "--overlap is at most half of --window")
        require(self.hidden_size % self.num_heads == 0, "--hidden-size must divide by --num-heads")
