"""Everything that can be wrong with a dataset's files, found by reading all of them once.

Opening a dataset finds what costs no pass over it; this makes the passes, and goes on after a finding. Knows nothing
of text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron.checksum import PIECE, hash_file
from megatron.data.checksum import checksum_path, read_checksums
from megatron.data.indexed_dataset import IndexedDataset, bin_path, idx_path
from megatron.data.origin import origin_path, other_tokenizer
from megatron.data.provenance import Provenance, provenance_path
from megatron.errors import DataError
from megatron.tokenizer.interface import Tokenizer

Progress = Callable[[int], None]  # told of bytes as they are read


@dataclass
class Report:
    """What was found in one dataset."""

    prefix: str
    findings: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)  # what is right, in a few words each

    def describe(self) -> str:
        """Say in one line what is right and how much is not."""
        found = f"{len(self.findings)} found wrong" if self.findings else "good"
        return f"{self.prefix}: {found}; {', '.join(self.checked) or 'nothing could be checked'}"


def dataset_files(prefix: str) -> list[Path]:
    """Give those files of a dataset that are there and have a checksum, .bin first."""
    files = (bin_path(prefix), idx_path(prefix), provenance_path(prefix), origin_path(prefix))
    return [path for path in files if path.exists()]


def verify_dataset(
    prefix: str,
    *,
    tokenizer: Tokenizer | None = None,
    on_bytes: Progress = lambda num_bytes: None,
) -> Report:
    """Check header, sizes, pointers, documents, the tokenizer and range of ids, provenance and checksums.

    on_bytes is told of each byte of `dataset_files` once. Without a tokenizer ids need only not be negative.
    """
    report = Report(prefix)
    digests = _checksums(report)
    dataset = None
    try:
        dataset = IndexedDataset(prefix)
        dataset.verify()
        report.checked.append(f"{len(dataset):,} items in {dataset.num_documents:,} documents")
    except DataError as error:
        report.findings.append(str(error))
    if dataset is not None:
        _check_provenance(dataset, report)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, report)
    num_equal = 0
    for path in dataset_files(prefix):
        try:
            if path == bin_path(prefix) and dataset is not None:
                found = _read_ids(dataset, tokenizer, report, on_bytes)
            else:
                found = hash_file(path, on_bytes)
        except OSError as error:
            report.findings.append(f"{path} cannot be read: {error.strerror}")
            continue
        if digests and digests.get(path, found) != found:
            report.findings.append(
                f"{path} is not what {checksum_path(prefix).name} says: its SHA-256 is {found}; copy it again"
            )
        num_equal += digests.get(path) == found
    if digests and num_equal == len(digests):
        report.checked.append(f"checksums of {num_equal} files")
    return report


def _checksums(report: Report) -> dict[Path, str]:
    """Read the checksum file, if there is one; find files it does not name and names without a file."""
    path = checksum_path(report.prefix)
    if not path.exists():
        report.checked.append("no checksum file")
        return {}
    try:
        digests = read_checksums(path)
    except DataError as error:
        report.findings.append(str(error))
        return {}
    files = dataset_files(report.prefix)
    report.findings += [
        f"{path} names {file}, which is missing" for file in digests if not file.exists()
    ]
    report.findings += [
        f"{path} does not name {file}; they were not written together"
        for file in files
        if file not in digests
    ]
    return digests


def _check_provenance(dataset: IndexedDataset, report: Report) -> None:
    try:
        provenance = Provenance.open(dataset.prefix, num_documents=dataset.num_documents)
        if provenance is not None:
            num_rows = sum(len(batch) for batch in provenance.batches())
            report.checked.append(f"{num_rows:,} rows of {', '.join(provenance.fields)}")
    except DataError as error:
        report.findings.append(str(error))


def _check_tokenizer(tokenizer: Tokenizer, report: Report) -> None:
    try:
        other = other_tokenizer(report.prefix, tokenizer.fingerprint())
    except DataError as error:
        report.findings.append(str(error))
        return
    if other is not None:
        report.findings.append(
            f"{report.prefix} was made with another tokenizer than {tokenizer.name}, by its fingerprint {other}; its "
            "ids stand for other text, unless the two differ in sentinels alone"
        )


def _read_ids(
    dataset: IndexedDataset, tokenizer: Tokenizer | None, report: Report, on_bytes: Progress
) -> str:
    """Check the range of all ids and give the SHA-256 of the file, in one pass."""
    digest = hashlib.sha256()
    limit = np.iinfo(dataset.dtype).max if tokenizer is None else tokenizer.vocab_size - 1
    lowest, highest, num_outside, first_outside = limit, 0, 0, 0
    step = PIECE // dataset.dtype.itemsize
    with bin_path(dataset.prefix).open("rb") as file:
        for start in range(0, dataset.num_tokens, step):
            piece = file.read(PIECE)
            digest.update(piece)
            ids = np.frombuffer(piece, dataset.dtype)
            low, high = int(ids.min()), int(ids.max())
            lowest, highest = min(lowest, low), max(highest, high)
            if low < 0 or high > limit:
                is_outside = (ids < 0) | (ids > limit)
                first_outside = first_outside if num_outside else start + int(is_outside.argmax())
                num_outside += int(is_outside.sum())
            on_bytes(len(piece))
    if num_outside:
        report.findings.append(
            f"{bin_path(dataset.prefix)}: {num_outside:,} ids are not from 0 to {limit}, the first at position "
            f"{first_outside} (id {int(dataset.tokens[first_outside])}, document {dataset.document_at(first_outside)}); "
            "the file is damaged or comes from another tokenizer"
        )
    elif dataset.num_tokens:
        report.checked.append(f"{dataset.num_tokens:,} ids from {lowest} to {highest}")
    return digest.hexdigest()
