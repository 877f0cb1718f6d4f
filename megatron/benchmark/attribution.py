"""`bench.py attribution`: building the indexes of attribution, asking them, and what they get wrong.

The token file is one of yours (--prefix, --tokenizer-file), or made of the Python source of this machine. Indexes are
built in a temporary folder, which holds links to the token file, and removed. Building is timed in a core's own time, so
that other processes of the machine do not count; questions by the clock and in a core's time, in one process after a
first question; a cold start is a whole process of tools/attribute.py by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.attribution.build import build, plan
from megatron.attribution.corpus import TokenFile, open_token_files
from megatron.attribution.kinds import KINDS
from megatron.attribution.membership import MembershipIndex, ask
from megatron.attribution.options import BuildOptions
from megatron.attribution.similar import Similar
from megatron.attribution.spelling import Spelling
from megatron.attribution.trace import Trace
from megatron.benchmark.corpus import prepare_corpus
from megatron.benchmark.measure import core_seconds, timed
from megatron.benchmark.output import machine
from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer

EXAMPLES = """\
  on 100 MB of the Python source of this machine:
    python tools/bench.py attribution --megabytes 100
  on your token file:
    python tools/bench.py attribution --prefix data/py_text_document --tokenizer-file tokenizer.json"""
TOOL = Path(__file__).parents[2] / "tools" / "attribute.py"
VOCAB_SIZE = 49152
QUERY_TOKENS = 256
SNIPPET_LINES = 10
PLANTED_BYTES = 99  # of normalised text
BATCH = 1_000_000


@dataclass(frozen=True)
class Attribution:
    """What the measurements share."""

    file: TokenFile
    tokenizer: Tokenizer
    tokenizer_file: str
    spelling: Spelling
    options: BuildOptions
    queries: int
    rounds: int
    look_ups: int  # of random fingerprints
    starts: int  # of processes

    @property
    def prefix(self) -> str:
        return self.file.prefix

    def snippets(self, seed: int, num_tokens: int) -> Iterator[bytes]:
        """Give texts of the data, of so many tokens each, of random places inside of documents."""
        draw = random.Random(seed)
        tokens = self.file.dataset.tokens
        count = 0
        for _ in range(1000 * self.queries):
            start = draw.randrange(len(tokens) - num_tokens)
            ids = tokens[start : start + num_tokens]
            text = self.spelling.text.text(ids)
            if (
                self.spelling.is_sentinel[ids].any()
                or text.decode(errors="replace").encode() != text
            ):
                continue
            yield text
            count += 1
            if count == self.queries:
                return
        raise DataError(f"{self.prefix} has too few documents of {num_tokens} tokens")


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    figure: str
    spread: str = ""
    note: str = ""


def building(bench: Attribution) -> Iterator[Line]:
    """Each kind, from nothing."""
    num_tokens = bench.file.dataset.num_tokens
    num_bytes = sum(
        int(bench.spelling.sizes[bench.file.dataset.tokens[start : start + BATCH]].sum())
        for start in range(0, num_tokens, BATCH)
    )
    variants = [(name, name, bench.options) for name in KINDS]
    starts = BuildOptions(**{**vars(bench.options), "line_starts": True})
    variants.insert(1, ("trace, line starts", "trace", starts))
    for name, kind, options in variants:

        def work(kind: str = kind, options: BuildOptions = options) -> None:
            tasks = plan([bench.prefix], [kind], options, again=True)
            build(
                tasks,
                bench.tokenizer,
                options,
                lambda _, total: contextlib.nullcontext(print_nothing),
            )

        taken = sorted(timed(work, core_seconds)() for _ in range(bench.rounds))
        size = KINDS[kind].open(bench.prefix).num_bytes
        speeds = [num_tokens / 1e6 / one for one in taken]
        middle = statistics.median(taken)
        yield Line(
            f"build {name}",
            f"{num_tokens / 1e6 / middle:.2f} Mtok/s",
            f"{min(speeds):.2f} to {max(speeds):.2f}",
            f"{num_bytes / 1e6 / middle:.0f} MB/s of text; {size / 1e6:,.1f} MB, {size / num_tokens:.3f} B/token",
        )


def print_nothing(done: int) -> None:
    """Take the progress of a build that is timed."""


def false_positives(bench: Attribution) -> Iterator[Line]:
    """Random fingerprints, which no text has."""
    index = MembershipIndex(bench.prefix)
    generator = np.random.default_rng(1)
    hits = num_keys = 0
    for _ in range(0, bench.look_ups, BATCH):
        num_keys += BATCH
        hits += int(index.contains(generator.integers(0, 1 << 64, BATCH, np.uint64)).sum())
    facts = index.index.facts
    yield Line(
        "false positives",
        f"{hits / num_keys:.3g}",
        f"{hits} of {num_keys:,}",
        f"designed {facts['rate']:.3g}, by the bits {index.rate:.3g}; {facts['fingerprints']:,} fingerprints, "
        f"{facts['fingerprints'] / facts['tokens']:.3f} a token",
    )


def recall(bench: Attribution) -> Iterator[Line]:
    """Runs of 99 normalised bytes of the data between text that is nowhere, with other blanks."""
    index = MembershipIndex(bench.prefix)
    draw = random.Random(3)
    found = total = 0
    for text in bench.snippets(4, QUERY_TOKENS):
        characters = text.decode()
        stop = next(
            (
                end
                for end in range(PLANTED_BYTES, len(characters))
                if len(re.sub(r"[ \t\n\v\f\r]+", " ", characters[:end]).encode()) >= PLANTED_BYTES
            ),
            None,
        )
        if stop is None:
            continue
        laid_out = re.sub(
            r"[ \t\n\v\f\r]+",
            lambda _: draw.choice((" ", "\n", "\t\t", "\r\n    ")),
            characters[:stop],
        )
        around = "".join(draw.choices("§¶†‡", k=100))
        total += 1
        found += bool(ask(f"{around}{laid_out}{around}".encode(), [index]).spans)
    yield Line("recall of 99 bytes", f"{found / max(total, 1):.4f}", f"{found} of {total}")


def questions(bench: Attribution) -> Iterator[Line]:
    """Texts of 256 tokens: as they stand in the data, and with a word of each line changed."""
    known = list(bench.snippets(5, QUERY_TOKENS))
    draw = random.Random(6)
    changed = [_changed(text, draw) for text in known]
    trace = Trace([bench.file], bench.tokenizer, bench.spelling)
    index = MembershipIndex(bench.prefix)
    for name, texts in (("of the data", known), ("a word of each line changed", changed)):
        yield _latency(f"trace, {name}", lambda text: trace(text, min_tokens=16), texts)
    for name, texts in (("of the data", known), ("a word of each line changed", changed)):
        yield _latency(f"membership, {name}", lambda text: ask(text, [index]), texts)


def searching(bench: Attribution) -> Iterator[Line]:
    """Ten lines of a file, as they are and with a word changed in a fifth of them: is it the first hit?"""
    similar = Similar([bench.file], bench.spelling)
    for name, num_changed in (("as it is", 0), ("2 lines with another name", SNIPPET_LINES // 5)):
        draw = random.Random(8)
        num_right, seconds = 0, []
        for _ in range(bench.queries):
            lines = _lines_of_a_file(bench, draw)
            asked = list(lines)
            worded = [n for n, line in enumerate(lines) if re.search(r"\w", line)]
            for number in draw.sample(worded, min(num_changed, len(worded))):
                asked[number] = _changed(lines[number].encode(), draw).decode()
            start = time.perf_counter()
            hits = similar("\n".join(asked), 1)
            seconds.append(time.perf_counter() - start)
            if hits:
                found = hits[0].file.source(hits[0].document, bench.spelling)
                num_right += "\n".join(lines) in found
        p50, p99 = 1000 * np.percentile(seconds, [50, 99])
        yield Line(
            f"search, {SNIPPET_LINES} lines {name}",
            f"{num_right / bench.queries:.1%} first",
            f"{num_right} of {bench.queries}",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        )


def _lines_of_a_file(bench: Attribution, draw: random.Random) -> list[str]:
    """Draw consecutive lines of a document, most of which are not blank."""
    while True:
        document = draw.randrange(bench.file.dataset.num_documents)
        lines = bench.file.source(document, bench.spelling).split("\n")
        start = draw.randrange(max(len(lines) - SNIPPET_LINES, 1))
        chosen = lines[start : start + SNIPPET_LINES]
        if sum(bool(line.strip()) for line in chosen) > SNIPPET_LINES // 2:
            return chosen


def _changed(text: bytes, draw: random.Random) -> bytes:
    """Put another word for one of each line."""
    lines = []
    for line in text.decode().split("\n"):
        words = list(re.finditer(r"\w+", line))
        if words:
            word = draw.choice(words)
            line = f"{line[: word.start()]}zq{draw.randrange(10**6)}{line[word.end() :]}"
        lines.append(line)
    return "\n".join(lines).encode()


def _latency(name: str, work: Callable[[bytes], object], texts: Sequence[bytes]) -> Line:
    """Time each text once, after one that does not count."""
    work(texts[0])
    by_clock, of_core = [], []
    for text in texts:
        start, start_core = time.perf_counter(), time.thread_time()
        work(text)
        by_clock.append(1000 * (time.perf_counter() - start))
        of_core.append(1000 * (time.thread_time() - start_core))
    p50, p99 = np.percentile(by_clock, [50, 99])
    return Line(
        name,
        f"p50 {p50:.2f} ms",
        f"p99 {p99:.2f} ms",
        f"core p50 {np.percentile(of_core, 50):.2f} ms, p99 {np.percentile(of_core, 99):.2f} ms; {len(texts)} texts",
    )


def cold_start(bench: Attribution) -> Iterator[Line]:
    """Whole processes, one question each."""
    texts = [
        text for text, _ in zip(bench.snippets(7, QUERY_TOKENS), range(bench.starts), strict=False)
    ]
    flags = {"membership": [], "trace": ["--tokenizer-file", bench.tokenizer_file]}
    for command, extra in flags.items():
        seconds, of_core = [], []
        for text in texts:
            start, start_core = time.perf_counter(), core_seconds()
            arguments = [sys.executable, str(TOOL), command, bench.prefix, "--json", *extra]
            done = subprocess.run(arguments, input=text, capture_output=True, check=False)
            seconds.append(time.perf_counter() - start)
            of_core.append(core_seconds() - start_core)
            if done.returncode:
                raise DataError(
                    f"tools/attribute.py {command} failed: {done.stderr.decode()[-300:]}"
                )
        yield Line(
            f"cold start, {command}",
            f"{statistics.median(seconds):.2f} s",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"core {statistics.median(of_core):.2f} s, {min(of_core):.2f} to {max(of_core):.2f}; {len(texts)} processes",
        )


SECTIONS: dict[str, Callable[[Attribution], Iterator[Line]]] = {
    "building": building,
    "false_positives": false_positives,
    "recall": recall,
    "questions": questions,
    "searching": searching,
    "cold_start": cold_start,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py attribution`."""
    parser.add_argument("--prefix", metavar="PREFIX", help="a token file, with --append-eod")
    parser.add_argument("--tokenizer-file", metavar="FILE", help="the tokenizer.json of --prefix")
    parser.add_argument(
        "--megabytes", type=float, default=20.0, help="of text, without --prefix (default: 20)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to make the temporary folder"
    )
    parser.add_argument("--memory", type=float, default=4.0, help="gigabytes (default: 4)")
    parser.add_argument("--queries", type=int, default=500, help="texts that are asked for")
    parser.add_argument(
        "--look-ups", type=float, default=1e8, help="to count false positives (default: 1e8)"
    )
    parser.add_argument("--starts", type=int, default=10, help="processes that are timed")
    parser.add_argument("--rounds", type=int, default=1, help="times each index is built")


def run(args: argparse.Namespace) -> None:
    """Measure, and print the table."""
    counts = (args.rounds, args.queries, args.starts, args.look_ups)
    if min(counts) < 1 or args.megabytes <= 0:
        raise ConfigError("--rounds, --queries, --starts, --look-ups, --megabytes: above 0")
    if (args.prefix is None) != (args.tokenizer_file is None):
        raise ConfigError("--prefix and --tokenizer-file go together")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.prefix is None:
            corpus = prepare_corpus(folder, VOCAB_SIZE, megabytes=args.megabytes)
            prefix, tokenizer_file = corpus.prefix, corpus.tokenizer_file
        else:
            prefix, tokenizer_file = _linked(args.prefix, folder), args.tokenizer_file
        tokenizer = build_tokenizer(TokenizerConfig(tokenizer_file=tokenizer_file))
        (file,) = open_token_files([prefix])
        bench = Attribution(
            file,
            tokenizer,
            tokenizer_file,
            Spelling(tokenizer),
            BuildOptions(memory=args.memory),
            args.queries,
            args.rounds,
            int(args.look_ups),
            args.starts,
        )
        print(_describe(bench), file=sys.stderr)
        print("| what | figure | spread | note |\n|---|---|---|---|")
        for section in SECTIONS.values():
            for line in section(bench):
                print(f"| {line.what} | {line.figure} | {line.spread} | {line.note} |", flush=True)


def _linked(prefix: str, folder: Path) -> str:
    """Link the files of a dataset into a folder, so that indexes are built there and not beside it."""
    given = Path(prefix).absolute()
    for ending in (".bin", ".idx", ".sha256", ".origin.json", ".provenance.arrow"):
        source = given.with_name(given.name + ending)
        if source.exists():
            (folder / source.name).symlink_to(source)
    return str(folder / given.name)


def _describe(bench: Attribution) -> str:
    """Say on what is measured."""
    dataset = bench.file.dataset
    return (
        f"{dataset.num_documents:,} documents, {dataset.num_tokens:,} tokens of {dataset.dtype.name}; "
        f"{machine()}"
    )
