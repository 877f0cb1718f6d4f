"""Every option of a run, a section a class: typed, frozen, one field a flag.

The flags are made from the fields by `megatron.cli`; the checks of one section stand beside its fields,
those that span sections are `Config`'s. Nothing here is written back after construction, and nothing
below this layer sees more than the section it needs. Knows nothing of torch.
"""

from megatron.options.data import DataConfig, TokenizerConfig
from megatron.options.model import ModelConfig, pad_vocab_size
from megatron.options.output import CheckpointConfig, LoggingConfig
from megatron.options.parallel import ParallelConfig
from megatron.options.training import OptimizerConfig, PrecisionConfig, TrainingConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "pad_vocab_size",
]
