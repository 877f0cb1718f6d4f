"""What a run reads, told apart by what the files hold and not by what they are called or where they lie.

A token file is known by its lengths and by a sample of its bytes: all of a file of up to a megabyte, of a longer one
64 blocks from its first byte to its last. In the .idx these are running sums of all lengths before them, so that a
document added, cut or left out shows in whatever block follows. Ids that were changed and kept their number may lie
between blocks of the .bin: those show where both times a `PREFIX.sha256` lay beside the files, which is compared
too. That costs the same for a terabyte as for a megabyte. Knows nothing of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron.data.checksum import checksum_path, read_checksums
from megatron.data.indexed_dataset import bin_path, idx_path
from megatron.data.opened_file import PositionedReader
from megatron.errors import DataError

WHOLE = 1 << 20  # bytes of a file that is read in full
BLOCK = 1 << 12
NUM_BLOCKS = 64
SHOWN = 12  # digits of a hash, for people


@dataclass(frozen=True)
class FileContent:
    """What tells a token file from others."""

    sample: str  # SHA-256 of the lengths of both files and of a sample of their bytes
    sha256: str | None  # of the lines that PREFIX.sha256 has of the two; None without it

    def is_same(self, other: FileContent) -> bool:
        """Say whether two files hold the same, as far as can be told of both."""
        has_checksums = None not in (self.sha256, other.sha256)
        return self.sample == other.sample and (self.sha256 == other.sha256 or not has_checksums)

    def describe(self) -> str:
        """Name the content in a few characters."""
        known = "" if self.sha256 is None else f", checksums {self.sha256[:SHOWN]}…"
        return f"content {self.sample[:SHOWN]}…{known}"


@dataclass(frozen=True)
class SourceContent:
    """A part of a token file and its weight, as they make up a set."""

    file: str  # the last part of its prefix, for people: a file may be renamed
    weight: str  # its share of the set, such as 3/10
    start: int  # the first of its documents
    stop: int
    content: FileContent

    def difference(self, other: SourceContent) -> str | None:
        """Say how the other differs; None if it is the same."""
        if not self.content.is_same(other.content):
            return f"{self.file} ({self.content.describe()}), this run {other.file} ({other.content.describe()})"
        if (self.start, self.stop) != (other.start, other.stop):
            return (
                f"documents {self.start} to {self.stop} of {self.file}, this run {other.start} to {other.stop} of "
                f"{other.file}"
            )
        if self.weight != other.weight:
            return f"weight {self.weight} of {self.file}, this run {other.weight}"
        return None


# The sources of sets, by name, in their order.
SetContents = Mapping[str, tuple[SourceContent, ...]]


def content_of(prefix: str) -> FileContent:
    """Tell the content of PREFIX.bin and PREFIX.idx. Raises DataError for what is missing or damaged."""
    digest = hashlib.sha256()
    for path in (bin_path(prefix), idx_path(prefix)):
        file = PositionedReader(path)
        digest.update(file.num_bytes.to_bytes(8, "little"))
        for start, num_bytes in _blocks(file.num_bytes):
            file.expect(start, num_bytes)
        for start, num_bytes in _blocks(file.num_bytes):
            digest.update(file.read(start, num_bytes))
    return FileContent(digest.hexdigest(), _checksums(prefix))


def difference_of_sets(old: SetContents, new: SetContents) -> str | None:
    """Say how sets differ from what they were, naming the first that does; None if they are the same."""
    if list(old) != list(new):
        return f"{_listed(list(old))}, this run {_listed(list(new))}"
    for name, sources in old.items():
        others = new[name]
        for number, (one, other) in enumerate(zip(sources, others, strict=False), 1):
            difference = one.difference(other)
            if difference is not None:
                of_set = f"source {number} of {len(sources)} of {name}"
                if len(sources) != len(others):
                    of_set += f" ({len(others)} in this run)"
                return f"{of_set} = {difference}"
        if len(sources) != len(others):
            longer = max(sources, others, key=len)
            extra = longer[min(len(sources), len(others))].file
            return f"{len(sources)} sources of {name}, this run {len(others)}: {extra} is in one of them"
    return None


def sets_to_json(sets: SetContents) -> dict[str, Any]:
    """Give sets as JSON values."""
    return {name: [asdict(source) for source in sources] for name, sources in sets.items()}


def sets_from_json(values: Any) -> SetContents:
    """Read what `sets_to_json` gave. Raises ValueError for anything else."""
    try:
        return {name: tuple(map(_source, sources)) for name, sources in values.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it does not describe sets of token files ({error})") from None


def _source(values: Any) -> SourceContent:
    content = FileContent(values["content"]["sample"], values["content"]["sha256"])
    source = SourceContent(**{**values, "content": content})
    texts = (source.file, source.weight, content.sample, content.sha256 or "")
    numbers = (source.start, source.stop)
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(number, int) for number in numbers
    ):
        raise TypeError(f"{values} is no part of a token file")
    return source


def _blocks(num_bytes: int) -> Sequence[tuple[int, int]]:
    """Give (start, length) of what is read of a file."""
    if num_bytes <= WHOLE:
        return [(0, num_bytes)]
    last = num_bytes - BLOCK
    return [(last * number // (NUM_BLOCKS - 1), BLOCK) for number in range(NUM_BLOCKS)]


def _checksums(prefix: str) -> str | None:
    """Join what PREFIX.sha256 says of the two files, by their endings, for a renamed dataset keeps what it says."""
    path = checksum_path(prefix)
    if not path.exists():
        return None
    try:
        digests = {file.suffix: digest for file, digest in read_checksums(path).items()}
    except DataError as error:
        raise DataError(f"{error}. Copy it again, or remove it to do without") from None
    if not {".bin", ".idx"} <= digests.keys():
        return None  # of other files
    return hashlib.sha256(f"{digests['.bin']} {digests['.idx']}".encode()).hexdigest()


def _listed(names: Sequence[str]) -> str:
    return f"sets {', '.join(names)}" if names else "no set"
