"""Joins datasets into one without decoding them: shards by their numbers, others in the order given.

Knows nothing of text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.checksum import hash_file
from megatron.data.checksum import Checksums
from megatron.data.indexed_dataset import IndexedDataset, bin_path, idx_path
from megatron.data.origin import join_origins
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.documents import read_documents
from megatron.data.preprocessing.shuffle import DocumentShuffler
from megatron.data.provenance import Provenance, provenance_path
from megatron.data.shards import natural_key, order_shards, split_name
from megatron.errors import DataError
from megatron.logging import get_logger

logger = get_logger(__name__)

Progress = Callable[[int], None]  # told of bytes of ids as they are copied


@dataclass(frozen=True)
class Source:
    """A dataset to be joined."""

    dataset: IndexedDataset
    provenance: Provenance | None
    checksums: Checksums | None


@dataclass(frozen=True)
class Merged:
    """What came out."""

    num_documents: int
    num_tokens: int


def list_prefixes(inputs: Sequence[Path], output: Path) -> list[Path]:
    """Give the prefixes of all inputs in order: of a folder all datasets, of a sharded dataset its shards.

    The output itself, left by an earlier run, is not one of them. Raises DataError where shards are missing or a
    dataset comes twice, where a folder holds shards beside other datasets, and where a name means a dataset as well as
    its shards.
    """
    prefixes = list(itertools.chain(*(_prefixes_of(path, output) for path in inputs)))
    names = Counter(prefix.resolve() for prefix in prefixes)
    if output.resolve() in names:
        raise DataError(f"{output} is both input and output; name another --output-prefix")
    for prefix in prefixes:
        if names[prefix.resolve()] > 1:
            raise DataError(
                f"{prefix} comes twice in --input; name it once (a run reads a dataset more often by its weight in "
                "--data-path)"
            )
        for file in (bin_path(prefix), idx_path(prefix)):
            if not file.exists():
                raise DataError(f"{file} does not exist; {prefix} cannot be merged without it")
    ordered: list[Path] = []
    for _, group in itertools.groupby(prefixes, _whole_of):
        members = list(group)
        ordered += order_shards(members) if split_name(members[0]) else members
    _refuse_split_groups(ordered)
    return ordered


def open_sources(prefixes: Sequence[Path], *, drop_provenance: bool) -> list[Source]:
    """Open and check all datasets; DataError if their ids or their provenance do not go together."""
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    for dataset in datasets:
        if dataset.dtype != datasets[0].dtype:
            raise DataError(
                f"{dataset.prefix} holds {dataset.dtype.name} ids, {datasets[0].prefix} {datasets[0].dtype.name}: "
                "they come from tokenizers of different size; preprocess them with the same one"
            )
    sources = [
        Source(
            dataset,
            None
            if drop_provenance
            else Provenance.open(dataset.prefix, num_documents=dataset.num_documents),
            Checksums.open(dataset.prefix),
        )
        for dataset in datasets
    ]
    unchecked = [source.dataset.prefix for source in sources if source.checksums is None]
    if unchecked:
        logger.warning(
            "%d of %d datasets have no checksums and are taken as they are, the first is %s",
            len(unchecked),
            len(sources),
            unchecked[0],
        )
    first = _fields(sources[0])
    for source in sources:
        if _fields(source) != first:
            raise DataError(
                f"provenance of {source.dataset.prefix} is ({', '.join(_fields(source))}), of "
                f"{sources[0].dataset.prefix} ({', '.join(first)}); preprocess both with the same --provenance-keys, "
                "or merge with --drop-provenance"
            )
    return sources


def merge(sources: Sequence[Source], output: Path, *, on_bytes: Progress) -> Merged:
    """Write all documents in the order of the sources.

    Raises DataError for a file that is not what its checksum says, for a damaged index and for a full disk.
    """
    return _write(sources, output, lambda writer: _copy(sources, writer, on_bytes))


def merge_shuffled(
    sources: Sequence[Source], output: Path, seed: int, *, on_bytes: Progress
) -> Merged:
    """Write all documents in a random order, which depends on the seed and their number alone.

    on_bytes is told of every byte twice: when it is read and when it is written.
    """
    return _write(sources, output, lambda writer: _shuffle(sources, writer, output, seed, on_bytes))


def _write(
    sources: Sequence[Source], output: Path, fill: Callable[[DatasetWriter], None]
) -> Merged:
    try:
        origin = join_origins([Path(source.dataset.prefix) for source in sources])
        dtype = sources[0].dataset.dtype
        with DatasetWriter(output, dtype, _fields(sources[0]), origin) as writer:
            fill(writer)
            builder = writer.builder
            if not builder.num_documents:
                raise DataError(f"no document in {', '.join(s.dataset.prefix for s in sources)}")
            writer.finalize()
            return Merged(builder.num_documents, builder.num_tokens)
    except OSError as error:
        raise DataError(
            f"{error.filename or output}: {error.strerror or error}; nothing was published"
        ) from error


def _copy(sources: Sequence[Source], writer: DatasetWriter, on_bytes: Progress) -> None:
    for source in sources:
        _check_index(source)
        digest = hashlib.sha256()

        def copied(piece: bytes, digest: hashlib._Hash = digest) -> None:
            digest.update(piece)
            on_bytes(len(piece))

        writer.add_dataset(source.dataset, source.provenance, copied)
        _check_ids(source, digest.hexdigest())


def _shuffle(
    sources: Sequence[Source], writer: DatasetWriter, output: Path, seed: int, on_bytes: Progress
) -> None:
    with DocumentShuffler(output.parent, seed) as shuffler:
        for source in sources:
            _check_index(source)
            digest = hashlib.sha256()
            for documents in read_documents(source.dataset, source.provenance):
                digest.update(documents.ids.data)
                shuffler.add(documents)
                on_bytes(documents.num_bytes)
            _check_ids(source, digest.hexdigest())
        for documents in shuffler.in_order():
            writer.add(documents)
            on_bytes(documents.num_bytes)


def _check_index(source: Source) -> None:
    """Read what says where documents lie and come from; DataError if it is damaged."""
    prefix = source.dataset.prefix
    if source.checksums is not None:
        source.checksums.compare(idx_path(prefix), hash_file(idx_path(prefix)))
        if source.provenance is not None:
            source.checksums.compare(provenance_path(prefix), hash_file(provenance_path(prefix)))
    source.dataset.verify()


def _check_ids(source: Source, digest: str) -> None:
    """Compare the ids that were read, before anything made of them is published."""
    if source.checksums is not None:
        source.checksums.compare(bin_path(source.dataset.prefix), digest)


def _prefixes_of(path: Path, output: Path) -> list[Path]:
    if path.is_dir():
        found = [prefix for prefix in _datasets_in(path) if prefix.resolve() != output.resolve()]
        if not found:
            raise DataError(f"{path} holds no .bin and .idx files to merge")
        splits = [split_name(prefix) for prefix in found]
        wholes = sorted({split[0] for split in splits if split is not None})
        if wholes and (len(wholes) > 1 or None in splits):
            raise DataError(
                f"{path} holds shards of {', '.join(whole.name for whole in wholes)} beside other datasets; name "
                f"what is to be merged, as --input {wholes[0]}"
            )
        return found
    if not path.parent.is_dir():
        return [path]
    shards = [
        prefix
        for prefix in _datasets_in(path.parent, f"{path.name}_")
        if _is_shard_of(prefix, path)
    ]
    is_there = idx_path(path).exists() or bin_path(path).exists()
    if shards and is_there and path.resolve() != output.resolve():
        raise DataError(
            f"{path} is a dataset, and {shards[0]} is a shard of one of that name: one of them is older; remove it, "
            "or move it to another folder"
        )
    return shards or [path]


def _datasets_in(folder: Path, beginning: str = "") -> list[Path]:
    prefixes = {
        file.with_name(file.name[: -len(file.suffix)])
        for file in folder.iterdir()
        if file.suffix in (".bin", ".idx") and file.name.startswith(beginning)
    }
    return sorted(prefixes, key=natural_key)


def _is_shard_of(prefix: Path, whole: Path) -> bool:
    split = split_name(prefix)
    return split is not None and split[0] == whole


def _whole_of(prefix: Path) -> Path | None:
    """Give the dataset that a prefix is a shard of, wherever its shards lie; None for no shard."""
    split = split_name(prefix)
    return Path(split[0].name) if split else None


def _refuse_split_groups(prefixes: Sequence[Path]) -> None:
    """Raise DataError if the shards of one dataset stand apart in the list."""
    wholes = [whole for whole, _ in itertools.groupby(prefixes, _whole_of) if whole is not None]
    if len(set(wholes)) < len(wholes):
        raise DataError(
            "the shards of a dataset stand apart in --input, with others between; name them together"
        )


def _fields(source: Source) -> tuple[str, ...]:
    return source.provenance.fields if source.provenance is not None else ()
