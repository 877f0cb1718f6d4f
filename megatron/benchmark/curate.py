"""`bench.py curate`: the stages of curation side by side with the original's way and with libraries, a core each.

The documents are files of this machine, or of folders that are named. What the original does is stated anew from its
definition: its rules a character at a time, its shingles as strings, SHA-1 of each, and 256 permutations modulo
2^61 - 1 in NumPy. Time is a core's own, so that other processes of the machine do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.benchmark import decontaminate, peers, pii
from megatron.benchmark.curation import Curation, core_timed, megabytes_of
from megatron.benchmark.measure import Row, Timed, measure, shown, table
from megatron.benchmark.output import machine
from megatron.curation.collect import CollectConfig, plan_folders
from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.dedup.fingerprints import MODES, NGRAM, NUM_PERMUTATIONS, Scheme, sign
from megatron.curation.filters.stage import FilterConfig, filter_stage
from megatron.curation.filters.text_measure import visible_length
from megatron.curation.pii.stage import PiiConfig, pii_stage
from megatron.curation.run.document import Document, Keep, apply_stages
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Step, run_steps
from megatron.curation.run.record_io import RecordWriter
from megatron.curation.select.stage import SelectConfig, select_stage
from megatron.errors import ConfigError, DataError

EXAMPLES = """\
  every stage, on files of this machine:
    python tools/bench.py curate
  personal data: speed, and what is found of that which was planted:
    python tools/bench.py curate --only pii pii-model
  near-duplicates, on your repositories:
    python tools/bench.py curate --only minhash whole --root ~/repositories

peers are timed if they are installed: pip install datasketch rensa ahocorasick_rs beautifulsoup4 detect-secrets"""
SYSTEM_FOLDERS = ("/usr/include", "/usr/share/perl", "/usr/share/nodejs", "/usr/share/gocode")
MERSENNE_PRIME = np.uint64((1 << 61) - 1)
MAX_HASH = np.uint64((1 << 32) - 1)
SPLIT = re.compile("[^A-Za-z_0-9]")


def select(bench: Curation) -> Iterator[Row]:
    """Languages and licences of documents in memory."""
    stage = select_stage(SelectConfig(unlicensed="keep"))
    work = core_timed(lambda: [stage.apply(document) for document in bench.documents])
    kept = sum(isinstance(stage.apply(document), Keep) for document in bench.documents)
    note = f"{kept:,} of {len(bench.documents):,} kept"
    yield from measure("select", "MB/s", bench.megabytes, work, {}, rounds=bench.rounds, note=note)


def filters(bench: Curation) -> Iterator[Row]:
    """The paper's rules on documents in memory, with their language; and all of the later ones."""
    documents = _with_language(bench.documents)
    megabytes = megabytes_of(document.text for document in documents)
    paper = filter_stage(FilterConfig())
    later = filter_stage(
        FilterConfig(
            drop_generated=True,
            max_encoded=0.5,
            max_encoded_run=1024,
            max_string=10000,
            max_lines=100_000,
        )
    )
    for name, stage, others in (
        (
            "filter",
            paper,
            {"a character at a time": core_timed(lambda: _original_rules(documents))},
        ),
        ("filter, all options", later, {}),
    ):
        work = core_timed(lambda stage=stage: [stage.apply(document) for document in documents])  # type: ignore[misc]
        yield from measure(name, "MB/s", megabytes, work, others, rounds=bench.rounds)


def _original_rules(documents: Sequence[Document]) -> None:
    for document in documents:
        lengths = [len(line) for line in document.text.splitlines()]
        _ = (np.mean(lengths), max(lengths), np.mean([c.isalnum() for c in document.text]))
        _ = "<?xml version=" in document.text[:100]


def html(bench: Curation) -> Iterator[Row]:
    """Visible text of HTML, of which the documents hold little: pages are made of them."""
    pages = [_page(text) for text in bench.texts[:300]]
    others: dict[str, Timed] = {}
    note = f"{len(pages)} pages made of the text"
    if peers.is_installed("bs4"):
        others[f"BeautifulSoup {peers.version('beautifulsoup4')}"] = core_timed(
            lambda: [_soup_length(page) for page in pages]
        )
        equal = sum(visible_length(page) == _soup_length(page) for page in pages)
        note += f", {equal} of equal length"
    work = core_timed(lambda: [visible_length(page) for page in pages])
    yield from measure(
        "html", "MB/s", megabytes_of(pages), work, others, rounds=bench.rounds, note=note
    )


def _page(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")[:20_000]
    lines = "\n".join(f"<p class='line'>{line}</p>" for line in escaped.split("\n"))
    return f"<html><head><style>p {{}}</style><script>f();\n</script></head><body>{lines}</body></html>"


def _soup_length(page: str) -> int:
    import bs4

    soup = bs4.BeautifulSoup(page, features="html.parser")
    for element in soup(["script", "style"]):
        element.extract()
    return len(soup.get_text())


def minhash(bench: Curation) -> Iterator[Row]:
    """Signatures of 256 permutations and band keys; peers get the same shingles to make themselves."""
    texts = bench.texts
    for mode in MODES:
        scheme = Scheme(shingles=mode)
        others: dict[str, Timed] = {}
        if mode == "bigcode":
            others["strings, SHA-1 and NumPy"] = core_timed(lambda: _original_signatures(texts))
            others |= _libraries(texts)
        yield from measure(
            f"minhash, {mode}",
            "MB/s",
            bench.megabytes,
            core_timed(lambda scheme=scheme: sign(texts, scheme)),  # type: ignore[misc]
            others,
            rounds=bench.rounds,
        )


def _shingles(text: str) -> list[str]:
    tokens = SPLIT.split(text)
    return list({" ".join(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)})


def _original_signatures(texts: Sequence[str]) -> None:
    random = np.random.RandomState(42)
    a = random.randint(1, int(MERSENNE_PRIME), NUM_PERMUTATIONS, dtype=np.uint64)
    b = random.randint(0, int(MERSENNE_PRIME), NUM_PERMUTATIONS, dtype=np.uint64)
    for text in texts:
        hashes = [
            int.from_bytes(hashlib.sha1(s.encode()).digest()[:4], "little") for s in _shingles(text)
        ]
        values = np.array(hashes, np.uint64)[:, None]
        _ = (((values * a + b) % MERSENNE_PRIME) & MAX_HASH).min(axis=0, initial=MAX_HASH)


def _libraries(texts: Sequence[str]) -> dict[str, Timed]:
    """Give the libraries that are installed, each with its own way from strings to a signature."""
    found: dict[str, Timed] = {}
    if peers.is_installed("datasketch"):
        import datasketch

        def sketch(text: str) -> Any:
            one = datasketch.MinHash(num_perm=NUM_PERMUTATIONS)
            one.update_batch([shingle.encode() for shingle in _shingles(text)])
            return one

        found[f"datasketch {peers.version('datasketch')}"] = core_timed(
            lambda: list(map(sketch, texts))
        )
    if peers.is_installed("rensa"):
        import rensa

        def hashed(text: str) -> Any:
            one = rensa.RMinHash(num_perm=NUM_PERMUTATIONS, seed=42)
            one.update(_shingles(text))
            return one

        found[f"rensa {peers.version('rensa')}"] = core_timed(lambda: list(map(hashed, texts)))
    return found


def whole(bench: Curation) -> Iterator[Row]:
    """Each stage as a run with one worker: records read from .jsonl.zst, records and ledger written."""
    path = bench.folder / "in.jsonl.zst"
    writer = RecordWriter(path, "jsonl.zst")
    for document in bench.documents:
        writer.write(document)
    writer.close()
    steps: dict[str, list[Step]] = {
        "select": [select_stage(SelectConfig(unlicensed="keep"))],
        "filter": [filter_stage(FilterConfig())],
        "dedup": [dedup_comparison(DedupConfig())],
        "pii": [pii_stage(PiiConfig())],
    }
    steps["all three"] = [step for name in ("select", "filter", "dedup") for step in steps[name]]
    for name, chosen in steps.items():
        output = str(bench.folder / "out")

        def run(chosen: list[Step] = chosen, output: str = output) -> None:
            options = RunOptions((str(path),), output, overwrite=True)
            (Path(output) / "totals.json").unlink(missing_ok=True)
            for done in Path(output).glob("shards/*"):
                done.unlink()
            run_steps(chosen, options)

        yield from measure(
            f"{name}, whole run", "MB/s", bench.megabytes, core_timed(run), {}, rounds=bench.rounds
        )


def _with_language(documents: Sequence[Document]) -> list[Document]:
    stage = select_stage(SelectConfig(any_license=True))
    chosen = apply_stages(list(documents), [stage], lambda entry: None)
    return [document for document in chosen if document is not None]


SECTIONS: dict[str, Callable[[Curation], Iterator[Row]]] = {
    "select": select,
    "filter": filters,
    "html": html,
    "minhash": minhash,
    "decontaminate": decontaminate.rows,
    "pii": pii.rules,
    "pii-model": pii.model,
    "whole": whole,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py curate`."""
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="some of its rows")
    parser.add_argument(
        "--root",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders of source (default: Python's library and packages, and system headers)",
    )
    parser.add_argument("--megabytes", type=float, default=20.0, help="of text, at most")
    parser.add_argument("--rounds", type=int, default=5, help="times each side is measured")


def run(args: argparse.Namespace) -> None:
    """Measure the sections that are asked for, and print their table."""
    if args.rounds < 1 or args.megabytes <= 0:
        raise ConfigError("--rounds and --megabytes must be above 0")
    given = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *SYSTEM_FOLDERS}
    roots = args.root or [Path(root) for root in sorted(given) if Path(root).is_dir()]
    documents = list(_documents(roots, args.megabytes))
    if not documents:
        raise DataError(f"there is no source below {', '.join(map(str, roots))}; give --root")
    with tempfile.TemporaryDirectory() as folder:
        bench = Curation(documents, Path(folder), args.rounds)
        print(_describe(bench), file=sys.stderr)
        sections = args.only or SECTIONS
        rows = shown(row for name in sections for row in SECTIONS[name](bench))
    print(table(rows))


def _documents(roots: Sequence[Path], megabytes: float) -> Iterator[Document]:
    """Give text files of the roots in the order of a hash of their path, so that every folder has its share."""
    sources = plan_folders(roots, CollectConfig(), shard_bytes=1, max_document_bytes=1_000_000)
    ordered = sorted(
        (hashlib.sha256(os.fsencode(source.files[0].path)).digest(), number, source)
        for number, source in enumerate(sources)
    )
    left = megabytes * 1e6
    for _, _, source in ordered:
        for item in source.read():
            if isinstance(item, Document) and item.text and left > 0:
                left -= len(item.text.encode())
                yield item


def _describe(bench: Curation) -> str:
    """Say on what is measured."""
    return f"{len(bench.documents):,} files, {bench.megabytes:.1f} MB; {bench.rounds} rounds; {machine()}"
