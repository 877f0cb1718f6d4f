"""How much a run has read of each source of its blend. Follows from the number of samples alone: nothing is counted."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.conversation_dataset import SourceDataset
from megatron.data.gpt_dataset import Dataset


@dataclass(frozen=True)
class Consumption:
    """What was read of one source."""

    source: str
    samples: int
    tokens: int
    epochs: float


def consumption(dataset: Dataset, num_samples: int, *, seq_length: int) -> list[Consumption]:
    """Say what the first num_samples samples of a blend took of each source; nothing for a single source."""
    if not isinstance(dataset, BlendedDataset):
        return []
    result = []
    for source, samples in zip(dataset.datasets, dataset.counts(num_samples), strict=True):
        assert isinstance(source, SourceDataset)
        epochs = samples / source.samples_per_epoch
        result.append(Consumption(source.name, samples, samples * seq_length, epochs))
    return result
