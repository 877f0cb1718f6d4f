"""What dedup remembers of each document, on disk, a folder a shard: digest, signature, band keys, rank and id.

All arrays are mapped, so memory is what is looked at. Band keys are stored sorted: a range of them is a slice, which
is how documents of many shards meet without holding them all. A folder appears whole. Knows nothing of clusters.

    keys.npy    uint64 [k]       band keys, sorted             rows.npy   uint32 [k]   whose they are
    digests.npy uint64 [n, 2]    SHA-256, its first 128 bits   bytes.npy  uint8 [n, P] last byte of each minimum
    ranks.npy   uint64 [n]       larger is better              ties.npy   uint64 [n]   hash of the id, smaller is better
    ids.arrow   utf8 [n]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from megatron.curation.run.document import Document
from megatron.curation.run.output_folder import aside, digest
from megatron.curation.run.record_io import BadRecord, Source
from megatron.curation.select.licences import PERMISSIVE, as_expressions, is_allowed
from megatron.data.arrow_array import numbers, texts
from megatron.errors import DataError
from megatron.whole_file import publish_whole

BATCH_CHARACTERS = 4 << 20  # handed to the kernel at a time
MODES = {"lexical": 0, "bigcode": 1}
NGRAM = 5  # tokens of a shingle; StarCoder §3.3
NUM_PERMUTATIONS = 256  # StarCoder §3.3
RELEASED = (1 << 64) - 1  # the rank of a document of an earlier release, which stays
_ALLOWED = frozenset(name.lower() for name in PERMISSIVE)
_ARRAYS = ("keys", "rows", "digests", "bytes", "ranks", "ties")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scheme:
    """What decides a fingerprint; two of different schemes cannot be compared."""

    shingles: str = "lexical"
    bands: int = 25
    rows: int = 10
    seed: int = 1
    is_near: bool = True  # False: digests alone
    by: tuple[str, ...] = ()  # properties that digests are of, instead of the text

    def to_json(self) -> dict[str, Any]:
        stated = {name: value for name, value in vars(self).items() if name != "by" or value}
        return stated | {"ngram": NGRAM, "permutations": NUM_PERMUTATIONS, "version": 1}

    def digest(self, document: Document, data: bytes) -> bytes:
        """Give what equal documents have in common; data: the text's UTF-8. One that lacks a property equals none."""
        if self.by:
            values = [document.find(name) for name in self.by]
            data = orjson.dumps(document.id if None in values else values, default=str)
        return hashlib.sha256(data).digest()[:16]


@dataclass(frozen=True)
class Fingerprints:
    """The folder of a shard, opened."""

    folder: Path

    def array(self, name: str) -> Array:
        """Map an array; an empty one cannot be mapped and is read."""
        path = self.folder / f"{name}.npy"
        try:
            mapped: Array = np.load(path, mmap_mode="r")
        except ValueError:
            mapped = np.load(path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}; start dedup again"
            ) from error
        return mapped

    @cached_property
    def num_documents(self) -> int:
        return len(self.array("ranks"))

    def ids(self) -> Any:
        """Map the ids, an Arrow array."""
        with pa.memory_map(str(self.folder / "ids.arrow")) as file:
            return pa.ipc.open_file(file).get_batch(0).column(0)


def rank_of(document: Document) -> int:
    """Give how much a document is worth keeping: licence first, then stars, then the newest date. Below RELEASED."""
    stated = as_expressions(document.find("license"))
    licence = 2 if any(is_allowed(name, _ALLOWED) for name in stated) else int(bool(stated))
    stars = document.find("stars")
    return licence << 61 | _bounded(stars, 30) << 31 | _seconds(document.find("date"))


def _bounded(value: Any, num_bits: int) -> int:
    """Give a number as one of so many bits; 0 for what is none, as pandas' NaN."""
    if not isinstance(value, int | float) or not value > 0:
        return 0
    return int(min(value, (1 << num_bits) - 1))


def _seconds(date: Any) -> int:
    """Give a date as seconds since 1970, 0 if it cannot be read."""
    if isinstance(date, str):
        try:
            date = datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError):
            return 0
    elif isinstance(date, datetime):
        date = date.timestamp()
    return _bounded(date, 31)


def compute(source: Source, scheme: Scheme, folder: Path, max_bytes: int) -> None:
    """Write the fingerprints of a shard, unless the folder has those of this source and scheme."""
    wanted = digest([source.fingerprint(), scheme.to_json(), max_bytes])
    done = folder / "done.json"
    if done.exists() and done.read_text() == wanted:
        return
    temporary = aside(folder)
    temporary.mkdir(parents=True)
    documents = (item for item in source.read() if not isinstance(item, BadRecord))
    _write(_fingerprint(documents, scheme, max_bytes), temporary)
    (temporary / "done.json").write_text(wanted)
    publish_whole(temporary, folder)


def _fingerprint(
    documents: Iterator[Document], scheme: Scheme, max_bytes: int
) -> tuple[dict[str, Array], list[str]]:
    ids: list[str] = []
    ranks, ties, digests = [], [], []
    signed: list[tuple[Array, Array]] = []  # band keys and last bytes, a batch each
    batch: list[str] = []
    size = 0
    for document in documents:
        data = document.text.encode("utf-8", "surrogatepass")
        ids.append(document.id)
        ranks.append(rank_of(document))
        ties.append(hashlib.blake2b(document.id.encode(), digest_size=8).digest())
        digests.append(scheme.digest(document, data))
        # What is above the hard cap is dropped by its own rule; it has no shingles.
        batch.append(document.text if len(data) <= max_bytes else "")
        size += len(data)
        if size >= BATCH_CHARACTERS:
            signed.append(sign(batch, scheme))
            batch, size = [], 0
    signed.append(sign(batch, scheme))
    keys = np.concatenate([keys for keys, _ in signed])
    last_bytes = np.concatenate([last for _, last in signed])
    rows = np.repeat(np.arange(len(ids), dtype=np.uint32), keys.shape[1])
    # Key 0 stands for no shingles, and is no key.
    flat = keys.reshape(-1)
    rows, flat = rows[flat != 0], flat[flat != 0]
    order = np.argsort(flat, kind="stable")
    arrays = {
        "keys": flat[order],
        "rows": rows[order],
        "digests": np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2),
        "bytes": last_bytes,
        "ranks": np.array(ranks, np.uint64),
        "ties": np.frombuffer(b"".join(ties), ">u8").astype(np.uint64),
    }
    return arrays, ids


def sign(texts: Sequence[str], scheme: Scheme) -> tuple[Array, Array]:
    """Give the band keys of texts, 0 for those without shingles, and the last byte of each of their minima."""
    if not scheme.is_near:
        return np.zeros((len(texts), 0), np.uint64), np.zeros((len(texts), 0), np.uint8)
    from megatron.curation import _minhash

    mode = MODES[scheme.shingles]
    minima, counts = _minhash.signatures(list(texts), mode, NGRAM, NUM_PERMUTATIONS, scheme.seed)
    keys = _minhash.band_keys(minima, scheme.bands, scheme.rows)
    keys[counts == 0] = 0
    return keys, minima.astype(np.uint8)


def _write(content: tuple[dict[str, Array], list[str]], folder: Path) -> None:
    arrays, ids = content
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    _write_ids(ids, folder)


def _write_ids(ids: Any, folder: Path) -> None:
    batch = pa.RecordBatch.from_arrays([texts(ids)], names=["id"])
    with (
        pa.OSFile(str(folder / "ids.arrow"), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)


def copy_survivors(fingerprints: Fingerprints, is_kept: Array, folder: Path) -> None:
    """Write the fingerprints of the documents that were kept, as those of a release."""
    folder.mkdir(parents=True)
    kept = np.flatnonzero(is_kept)
    arrays = {name: fingerprints.array(name) for name in _ARRAYS}
    new_rows = np.cumsum(is_kept, dtype=np.uint32) - 1
    chosen = is_kept[arrays["rows"]]
    content = {
        "keys": arrays["keys"][chosen],
        "rows": new_rows[arrays["rows"][chosen]].astype(np.uint32),
        "ranks": np.full(len(kept), RELEASED, np.uint64),
        **{name: arrays[name][kept] for name in ("digests", "bytes", "ties")},
    }
    _write((content, fingerprints.ids().take(numbers(kept, np.int64)).to_pylist()), folder)
