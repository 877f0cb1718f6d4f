"""Which samples a step of a run took, and the documents they were made of.

What a run reads follows from its options and from how many samples it has consumed. Both are in its checkpoints, so
a trace needs their JSON files and the token files: no tensors, no process group, no torch.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpoint.checksums import read_config, read_state
from megatron.checkpoint.files import read_json_object
from megatron.checkpoint.layout import (
    CONFIG_FILE,
    METADATA_FILE,
    checkpoint_folder,
    find_checkpoint,
    latest_iteration,
    saved_iterations,
)
from megatron.config import Config, from_json
from megatron.data.build import build_datasets
from megatron.data.gpt_dataset import Dataset
from megatron.data.sample_order import sample_numbers
from megatron.data.trace import TracedSample, Tracer
from megatron.errors import CheckpointError, ConfigError
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.training.batch_schedule import BatchSchedule
from megatron.training.contents import Contents
from megatron.training.fingerprint import read_fingerprint
from megatron.training.skipped import (
    SkippedSamples,
    first_sample,
    is_of_same_past,
    skipped_in,
)


@dataclass(frozen=True)
class RunRecord:
    """What the checkpoints of a run say about one of its steps, or about its end."""

    folder: Path  # the checkpoint whose options count
    config: Config
    world_size: int | None  # of the run that wrote it
    contents: Contents | None  # of the files that it read; None where it does not say
    # (iteration, consumed samples) of every checkpoint, ascending
    saved: tuple[tuple[int, int], ...]
    skipped: tuple[SkippedSamples, ...] = ()

    @classmethod
    def open(cls, path: Path, step: int | None = None) -> RunRecord:
        """Read a run's folder, or one of its checkpoints, whose options count then for whatever step.

        Of a run's folder, those of the first checkpoint from `step` on count, since a run may have been continued
        with other options; those of the latest one after that and where no step is asked for. Before a run's first
        checkpoint it is what it wrote when it started. Raises CheckpointError.
        """
        is_one = (path / CONFIG_FILE).is_file() and path.name.startswith("iter_")
        root = path.parent if is_one else path
        iterations = saved_iterations(root) if root.is_dir() else []
        latest = None if is_one else latest_iteration(root)
        if not iterations and (root / CONFIG_FILE).is_file():
            return cls(root, _read_options(root), None, None, ())
        later = [number for number in iterations if step is not None and number >= step]
        if latest is None:
            folder = find_checkpoint(path)  # of a run's folder, says that there is none
        else:
            folder = checkpoint_folder(root, min(later, default=latest))
        state = read_state(folder)
        states = [read_state(checkpoint_folder(root, number)) for number in iterations]
        skipped = skipped_in(
            state if latest is None else read_state(checkpoint_folder(root, latest))
        )
        saved = tuple(
            (one["iteration"], one["consumed_samples"])
            for one in states
            if is_of_same_past(one["iteration"], one, skipped)
        )
        contents = read_fingerprint(folder).contents
        return cls(folder, _read_options(folder), state.get("world_size"), contents, saved, skipped)

    def data_parallel_size(self, world_size: int | None) -> int:
        """Give the number of data-parallel ranks. Raises ConfigError if the run did not record its size."""
        known = world_size or self.world_size
        if known is None:
            raise ConfigError(
                f"{self.folder} does not say how many processes its run had; add --world-size N"
            )
        return self.config.parallel.data_parallel_size(known)

    def batch_of(self, step: int, dp_size: int) -> tuple[int, int]:
        """Give (samples consumed before a step, its global batch size); steps count from 1.

        Counts on from the last checkpoint before the step. Raises CheckpointError if it does not arrive at the next
        one, as when the batch size was changed in between.
        """
        if step < 1:
            raise ConfigError(f"--step {step}: steps count from 1")
        batches = BatchSchedule.create(self.config.training, self.config.global_batch_size(dp_size))
        iteration, consumed = max((one for one in self.saved if one[0] < step), default=(0, 0))
        start = iteration

        def after(iteration: int, consumed: int) -> tuple[int, int]:
            first = first_sample(iteration, consumed, self.skipped)
            return iteration + 1, first + batches.size(first)

        while iteration < step - 1:
            iteration, consumed = after(iteration, consumed)
        first = first_sample(iteration, consumed, self.skipped)
        result = (first, batches.size(first))
        following = min((one for one in self.saved if one[0] >= step), default=None)
        while following is not None and iteration < following[0]:
            iteration, consumed = after(iteration, consumed)
        if following is not None and consumed != following[1]:
            raise CheckpointError(
                f"{self.folder}: from step {start} to {following[0]} the run consumed samples up to {following[1]}, "
                f"and its options make it {consumed}: its batch size was changed in between, so the samples of step "
                f"{step} cannot be told. Give --sample, or --load a checkpoint of the same options"
            )
        return result

    @property
    def num_consumed(self) -> int:
        """Count the samples that the run had consumed at its last checkpoint, those left out among them."""
        return max((consumed for _, consumed in self.saved), default=0)

    def steps_of(self, samples: Sequence[int], dp_size: int) -> dict[int, int]:
        """Give the step, from 1, that each of some samples was read in; none for those that were left out or not read."""
        batches = BatchSchedule.create(self.config.training, self.config.global_batch_size(dp_size))
        steps: dict[int, int] = {}
        marks = [(0, 0), *self.saved]
        for (iteration, consumed), (stop, _) in itertools.pairwise(marks):
            while iteration < stop:
                first = first_sample(iteration, consumed, self.skipped)
                iteration, consumed = iteration + 1, first + batches.size(first)
                begin = bisect.bisect_left(samples, first)
                end = bisect.bisect_left(samples, consumed)
                steps |= dict.fromkeys(samples[begin:end], iteration)
        return steps

    def require_same_files(self, opt_outs: tuple[str, ...], contents: Contents) -> None:
        """Raise CheckpointError unless the files that were opened are those that the run read.

        opt_outs: SHA-256 of the opt-out lists.
        """
        data = self.config.data
        if opt_outs != data.exclude_documents_sha256:
            raise CheckpointError(
                f"{' '.join(data.exclude_documents)}: not the opt-out lists that the run read, by their "
                f"SHA-256 in {self.folder / CONFIG_FILE}; samples are others with other lists. Give the files "
                "their old content back"
            )
        difference = self.contents.difference(contents) if self.contents else None
        if difference is not None:
            raise CheckpointError(
                f"{self.folder} {difference}: its samples cannot be told from other files. Give them their old "
                "content back"
            )


def _read_options(folder: Path) -> Config:
    """Read the options of a checkpoint, or those that a run wrote beside its checkpoints, which have no hash."""
    is_checkpoint = (folder / METADATA_FILE).is_file()
    try:
        return from_json(
            read_config(folder) if is_checkpoint else read_json_object(folder / CONFIG_FILE)
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def dp_rank_of(config: Config, rank: int, dp_size: int) -> int:
    """Give the data-parallel rank of a process: ranks count through tensor, context, data, pipeline parallel."""
    num_processes = config.parallel.model_parallel_size * dp_size
    if not 0 <= rank < num_processes:
        raise ConfigError(f"--rank {rank}: the run had processes 0 to {num_processes - 1}")
    parallel = config.parallel
    num_sharing = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    return rank // num_sharing % dp_size


class RunTrace:
    """The sets of a run, opened as it opened them, to look up samples in."""

    def __init__(self, record: RunRecord) -> None:
        """Open the token files. Raises DataError for what is missing, and if an opt-out list is not what it was."""
        config = record.config
        self.tokenizer: Tokenizer = build_tokenizer(config.tokenizer)
        datasets = build_datasets(config.data, self.tokenizer, seed=config.training.seed)
        record.require_same_files(
            datasets.excluded_sha256,
            Contents(self.tokenizer.fingerprint(), datasets.train_content, datasets.eval_content),
        )
        self._sets = {**datasets.valid, **datasets.logged_test, "train": datasets.train}
        self._tracers: dict[str, Tracer] = {}

    def trace(self, name: str, sample: int) -> TracedSample:
        """Trace a sample of a set by number. Raises ConfigError if there is none."""
        if sample < 0:
            raise ConfigError(f"--sample {sample}: samples count from 0")
        return self.tracer(name).trace(sample)

    def text(self, name: str, sample: int) -> str:
        """Give what the model reads of a sample, after fill-in-the-middle, and the last label."""
        read = self._set(name)[sample]
        ids = [*read["tokens"].tolist(), int(read["labels"][-1])]
        return self.tokenizer.detokenize(ids)

    def tracer(self, name: str) -> Tracer:
        """Give what traces the samples of a set. Raises ConfigError if there is none."""
        if name not in self._tracers:
            self._tracers[name] = Tracer(self._set(name))
        return self._tracers[name]

    def _set(self, name: str) -> Dataset:
        if name not in self._sets:
            raise ConfigError(f"--set {name}: the run has {', '.join(self._sets)}")
        return self._sets[name]


def samples_of_step(
    record: RunRecord, step: int, *, rank: int | None, world_size: int | None
) -> list[int]:
    """Give the training samples of a step: those that one process read, or all, in order of number."""
    dp_size = record.data_parallel_size(world_size)
    consumed, size = record.batch_of(step, dp_size)
    if rank is None:
        return list(range(consumed, consumed + size))
    return sample_numbers(
        consumed,
        size,
        micro_batch_size=record.config.training.micro_batch_size,
        dp_rank=dp_rank_of(record.config, rank, dp_size),
        dp_size=dp_size,
    )


class DocumentSteps:
    """Which steps of a run read a document."""

    def __init__(self, load: Path, world_size: int | None = None) -> None:
        """Open a run's folder, or one of its checkpoints. Raises as `RunRecord.open` and `RunTrace` do."""
        self.record = RunRecord.open(load)
        self._dp_size = self.record.data_parallel_size(world_size)
        self._train = RunTrace(self.record).tracer("train")

    def reads(self, prefix: str) -> bool:
        """Say whether the run trains on a token file."""
        return self._train.reads(prefix)

    def __call__(self, prefix: str, document: int) -> list[tuple[int, int]]:
        """Give (step, sample) of every time that a part of a document was read, up to the last checkpoint."""
        samples = self._train.samples_of(prefix, document, self.record.num_consumed)
        steps = self.record.steps_of(samples, self._dp_size)
        return [(steps[sample], sample) for sample in samples if sample in steps]


def to_json(traced: TracedSample, name: str) -> dict[str, Any]:
    """Give a traced sample as JSON values."""
    return {
        "set": name,
        "sample": traced.sample,
        "source": traced.source,
        "documents": [
            {
                "dataset": traced.prefix,
                "document": span.document,
                "tokens": [span.tokens.start, span.tokens.stop],
                "first": span.first,
                "document_tokens": span.num_document_tokens,
                "provenance": span.provenance,
            }
            for span in traced.spans
        ],
    }


def describe(traced: TracedSample, name: str) -> Iterator[str]:
    """Give a traced sample as lines for people."""
    yield f"{name} sample {traced.sample}: {traced.prefix}"
    for span in traced.spans:
        part = f"{span.first}-{span.first + len(span.tokens) - 1} of {span.num_document_tokens}"
        fields = [f"{key}={value}" for key, value in (span.provenance or {}).items()]
        yield (
            f"  tokens {span.tokens.start:>6}-{span.tokens.stop - 1:<6} document {span.document} "
            f"(its tokens {part})  {'  '.join(fields) if fields else 'no provenance'}"
        )
