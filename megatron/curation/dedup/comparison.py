"""Deduplication (StarCoder §3.3): exact by SHA-256, near by MinHash-LSH, the best of each group kept.

5-grams of tokens, 256 permutations, similarity 0.7, hence 25 bands of 10 rows. Three steps: fingerprints of every
shard, decisions from the fingerprints alone, and a pass that drops. With an index, what was kept in earlier runs takes
part and stays. Knows nothing of how a shard is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from megatron.curation.dedup.duplicates import (
    Collection,
    Decisions,
    exact_pairs,
    near_edges,
    num_ranges,
    num_repeated,
)
from megatron.curation.dedup.fingerprints import (
    NUM_PERMUTATIONS,
    Fingerprints,
    Scheme,
    compute,
    copy_survivors,
    sign,
)
from megatron.curation.run.document import Document, Drop, Keep, Stage, Verdict
from megatron.curation.run.output_folder import disk_errors, remove_leftovers, write_whole
from megatron.curation.run.passes import Comparison, Corpus
from megatron.curation.run.record_io import Source
from megatron.data.publish import open_locked
from megatron.errors import ConfigError
from megatron.logging import get_logger
from megatron.option_field import check_bounds, option
from megatron.whole_file import publish_whole

logger = get_logger(__name__)

KINDS = {1: "exact-duplicate", 2: "near-duplicate"}


@dataclass(frozen=True)
class DedupConfig:
    """What counts as a duplicate, and which of them is kept."""

    near: Literal["minhash", "none"] = option("minhash", "none: exact duplicates only")
    by: tuple[str, ...] = option(
        (), "compare these properties instead of texts: repo path keeps one commit of each file"
    )
    threshold: float = option(
        0.7,
        "similarity (Jaccard, of sets of 5 tokens) from which a file is a duplicate",
        above=0,
        maximum=1,
    )
    bands: int = option(25, "bands of the signature", minimum=1)
    rows: int = option(10, "minima of a band", minimum=1)
    shingles: Literal["lexical", "bigcode"] = option(
        "lexical", "tokens: words, or those of the original with all the empty ones between"
    )
    verify: Literal["signature", "none"] = option(
        "signature",
        "candidates must reach the threshold by all 256 minima; none: sharing a band is enough, as in the original",
    )
    survivors: Literal["similar", "one"] = option(
        "similar",
        "drop only what resembles a file that is kept; one: keep one of each connected group, as the original",
    )
    seed: int = option(1, "of the hash functions", minimum=0)
    index: str | None = option(
        None,
        "folder that remembers what was kept: later runs with it drop what repeats that",
        metavar="DIR",
    )

    def check(self) -> None:
        """Raise ConfigError for bands that do not fit the signature."""
        check_bounds(self)
        if self.bands * self.rows > NUM_PERMUTATIONS:
            raise ConfigError(
                f"--bands {self.bands} x --rows {self.rows} is more than the {NUM_PERMUTATIONS} minima of a signature"
            )

    @property
    def scheme(self) -> Scheme:
        """Give what decides a fingerprint."""
        is_near = self.near == "minhash" and not self.by
        return Scheme(self.shingles, self.bands, self.rows, self.seed, is_near, self.by)


def dedup_comparison(config: DedupConfig) -> Comparison:
    """Give the step of a pipeline."""
    config.check()
    settings = {**vars(config), "index": bool(config.index)}
    return Comparison(
        "dedup",
        partial(_decide, config, settings),
        settings,
        partial(_rehearse, config),
        partial(_finish, config),
        partial(_index_locked, config),
    )


def _decide(
    config: DedupConfig, settings: dict[str, Any], corpus: Corpus
) -> Callable[[int], Stage]:
    """Fingerprint all shards, decide, and give each shard the stage that knows its decisions. Forks."""
    _fingerprint_all(config, corpus)
    older = _older(config, corpus)
    collection = Collection([*older, *_shards(corpus)])
    decisions = Decisions.create(corpus.work, len(collection))
    _compare(config, corpus, collection, decisions)
    starts = collection.starts[len(older) :]
    kinds = {1: "same-" + "-".join(config.by)} if config.by else KINDS
    # What an index holds by then decides, too.
    settings = {**settings, "older": [str(shard.folder) for shard in older]}

    def stage_of(shard: int) -> Stage:
        part = slice(int(starts[shard]), int(starts[shard + 1]))
        answers = _answers(collection, decisions, part, kinds)
        return Stage("dedup", partial(_apply, answers), settings)

    return stage_of


def _rehearse(config: DedupConfig, texts: Sequence[str]) -> float | None:
    """Sign some texts, and give the part of them that repeats one of the others; None if texts are not compared."""
    keys, last_bytes = sign(texts, config.scheme)
    if config.by:
        return None
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    threshold = config.threshold if config.verify == "signature" else 0.0
    return num_repeated(digests, keys, last_bytes, threshold) / max(len(texts), 1)


def _answers(
    collection: Collection, decisions: Decisions, part: slice, kinds: dict[int, str]
) -> Iterator[Drop | None]:
    """Give what becomes of each document of a shard, in order."""
    rows = zip(
        decisions.twins[part], decisions.kinds[part], decisions.similarities[part], strict=True
    )
    for twin, kind, similarity in rows:
        if twin == 0:
            yield None
        else:
            yield Drop(kinds[int(kind)], float(similarity), collection.id_of(int(twin) - 1))


def _apply(answers: Iterator[Drop | None], document: Document) -> Verdict:
    return next(answers) or Keep(document)


def _shards(corpus: Corpus) -> list[Fingerprints]:
    return [Fingerprints(_folder(corpus, number)) for number in range(len(corpus.sources))]


def _folder(corpus: Corpus, number: int) -> Path:
    return corpus.work / f"{number:05d}"


def _fingerprint_all(config: DedupConfig, corpus: Corpus) -> None:
    remove_leftovers(corpus.work)
    work = partial(_fingerprint, config.scheme, corpus.work, corpus.max_document_bytes)
    total = sum(source.num_bytes for source in corpus.sources)
    with (
        corpus.progress("fingerprints", total) as on_bytes,
        corpus.pool(work, len(corpus.sources)) as pool,
    ):
        for size in pool.map(enumerate(corpus.sources)):
            on_bytes(size)


def _fingerprint(scheme: Scheme, work: Path, max_bytes: int, task: tuple[int, Source]) -> int:
    number, source = task
    folder = work / f"{number:05d}"
    with disk_errors(folder):
        compute(source, scheme, folder, max_bytes)
    return source.num_bytes


def _compare(
    config: DedupConfig, corpus: Corpus, collection: Collection, decisions: Decisions
) -> None:
    count = num_ranges(len(collection))
    with corpus.pool(lambda number: exact_pairs(collection, number, count), count) as pool:
        for documents, twins in pool.map(range(count)):
            decisions.add_exact(documents, twins)
    if not config.scheme.is_near:
        return
    decisions.flush()
    threshold = config.threshold if config.verify == "signature" else None
    count = num_ranges(sum(len(shard.array("keys")) for shard in collection.shards))
    with (
        corpus.progress("duplicates", count) as on_range,
        corpus.pool(
            lambda number: near_edges(collection, number, count, decisions, threshold), count
        ) as pool,
    ):
        for pair in pool.map(range(count)):
            decisions.add_edges(*pair)
            on_range(1)
    # Without verification a shared band is all that counts, to the end.
    is_one_kept = config.survivors == "one" or threshold is None
    decisions.resolve(collection, threshold=config.threshold, is_one_kept=is_one_kept)
    decisions.flush()


def _generation(config: DedupConfig, corpus: Corpus) -> str:
    """Name what this run adds to an index: the same texts, wherever they lie, give the same name and replace themselves."""
    content = hashlib.sha256(orjson.dumps(config.scheme.to_json()))
    for name in ("digests", "ties"):  # of texts and of ids; the bounds of shards do not count
        for shard in _shards(corpus):
            content.update(shard.array(name).tobytes())
    return "release-" + content.hexdigest()[:16]


@contextlib.contextmanager
def _index_locked(config: DedupConfig) -> Iterator[None]:
    """Keep an index from others while a run reads it and adds to it: of two at once neither would see the other."""
    if config.index is None:
        yield
        return
    index = Path(config.index)
    index.mkdir(parents=True, exist_ok=True)
    with open_locked(index / ".lock"):
        yield


def _older(config: DedupConfig, corpus: Corpus) -> list[Fingerprints]:
    """Open the releases of the index, but for what this very input added to it."""
    if config.index is None:
        return []
    index = Path(config.index)
    path = index / "scheme.json"
    scheme = orjson.dumps(config.scheme.to_json(), option=orjson.OPT_SORT_KEYS)
    if not path.exists():
        write_whole(path, scheme)
    elif path.read_bytes() != scheme:
        raise ConfigError(
            f"--index {index} was made with {path.read_text()}, and this run asks for {scheme.decode()}; give the same "
            "options, or another folder"
        )
    own = _generation(config, corpus)
    releases = [folder for folder in sorted(index.glob("release-*")) if folder.name != own]
    return [Fingerprints(shard) for folder in releases for shard in sorted(folder.iterdir())]


def _finish(config: DedupConfig, corpus: Corpus) -> None:
    """Add to the index what was kept; it appears whole."""
    if config.index is None:
        return
    index = Path(config.index)
    with disk_errors(index):
        name = _add(config, corpus, index)
    logger.info("--index %s holds what was kept as %s", index, name)


def _add(config: DedupConfig, corpus: Corpus, index: Path) -> str:
    """Write what was kept as a release, in place of that of the same texts, and give its name."""
    twins = np.load(corpus.work / "twins.npy", mmap_mode="r")
    shards = _shards(corpus)
    name = _generation(config, corpus)
    temporary = index / f".{name}.tmp"
    for leftover in index.glob(".release-*.tmp"):
        shutil.rmtree(leftover)
    temporary.mkdir()
    start = sum(shard.num_documents for shard in _older(config, corpus))
    for number, shard in enumerate(shards):
        stop = start + shard.num_documents
        copy_survivors(shard, np.asarray(twins[start:stop]) == 0, temporary / f"{number:05d}")
        start = stop
    publish_whole(temporary, index / name)
    return name
