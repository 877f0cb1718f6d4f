"""Perplexity by length of context and by language: what a model gains from what stands further back.

For each length C every text is read in windows of C tokens, one after another, so each token is scored once for each C,
by at most C tokens before it; sums for two lengths are of the same tokens. A text begins after an end of text, as in
training. Sums are of float64, and per byte, too: tokenizers differ, bytes do not. Knows nothing of models: who scores is
handed in.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import ConfigError, DataError
from megatron.evaluation.infilling import LANGUAGES
from megatron.option_field import require
from megatron.tokenizer.interface import Tokenizer

LENGTHS = (512, 1024, 2048, 4096, 8192)
NUM_TOKENS = 100_000

Score = Callable[[Sequence[int]], npt.NDArray[np.float64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of perplexity but those of the model."""
    texts = parser.add_argument_group("texts")
    what = texts.add_mutually_exclusive_group(required=True)
    what.add_argument("--folder", type=Path, metavar="DIR", help="source files, by language")
    what.add_argument(
        "--data-prefix", nargs="+", metavar="[NAME=]PREFIX", help="PREFIX.bin and PREFIX.idx"
    )
    texts.add_argument("--only", nargs="+", metavar="NAME", help="these languages of the folder")
    texts.add_argument(
        "--concatenate",
        action="store_true",
        help="read a language's files as one long text, in the order of their paths, each ended by the end of text",
    )
    texts.add_argument(
        "--min-tokens", type=int, default=1, metavar="N", help="leave shorter texts out"
    )
    texts.add_argument(
        "--num-tokens",
        type=int,
        default=NUM_TOKENS,
        metavar="N",
        help=f"of each language or dataset, the last text cut there (default: {NUM_TOKENS:,})",
    )
    texts.add_argument("--seed", type=int, default=0, help="of the choice of texts")
    parser.add_argument(
        "--context-lengths",
        type=int,
        nargs="+",
        metavar="N",
        help=f"default: those of {' '.join(map(str, LENGTHS))} that the model has positions for",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PREFIX",
        help="write PREFIX.report.json and PREFIX.report.md",
    )


@dataclass(frozen=True)
class Text:
    """One text to read, without an end of text at its ends."""

    group: str
    ids: list[int]


@dataclass
class Sums:
    """What is summed over tokens."""

    num_tokens: int = 0
    num_bytes: int = 0
    log_probability: float = 0.0  # nats

    def add(self, scores: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> None:
        """Add tokens."""
        self.num_tokens += len(scores)
        self.num_bytes += int(sizes.sum())
        self.log_probability += math.fsum(scores.tolist())

    def as_row(self) -> dict[str, Any]:
        """Give sums and what they come to."""
        loss = -self.log_probability / self.num_tokens if self.num_tokens else math.nan
        bits = -self.log_probability / math.log(2)
        return {
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "log_probability": self.log_probability,
            "nats_per_token": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": bits / self.num_bytes if self.num_bytes else math.nan,
        }


@dataclass(frozen=True)
class Plan:
    """What is read, and how."""

    texts: list[Text]
    lengths: tuple[int, ...]  # ascending
    eod: int
    token_sizes: npt.NDArray[np.int64]  # bytes of each id

    @property
    def num_scores(self) -> int:
        """Count the tokens that are scored, for each length anew."""
        return len(self.lengths) * sum(len(text.ids) for text in self.texts)

    def run(self, score: Score, progress: Callable[[int], Any]) -> dict[str, Any]:
        """Read all texts with every length of context."""
        groups: dict[str, dict[int, Sums]] = {}
        positions = {first: Sums() for first in (0, *self.lengths[:-1])}
        for text in self.texts:
            ids = [self.eod, *text.ids]
            sizes = self.token_sizes[text.ids]
            sums = groups.setdefault(text.group, {length: Sums() for length in self.lengths})
            for length in self.lengths:
                for start in range(0, len(text.ids), length):
                    scores = score(ids[start : start + length + 1])
                    part = slice(start, start + len(scores))
                    sums[length].add(scores, sizes[part])
                    progress(len(scores))
                    if length == self.lengths[-1]:
                        self._add_positions(positions, scores, sizes[part])
        totals = {length: Sums() for length in self.lengths}
        for sums in groups.values():
            for length, found in sums.items():
                total = totals[length]
                total.num_tokens += found.num_tokens
                total.num_bytes += found.num_bytes
                total.log_probability += found.log_probability
        return {
            "context_lengths": list(self.lengths),
            "num_texts": len(self.texts),
            "groups": {name: _rows(sums) for name, sums in groups.items()},
            "all": _rows(totals),
            "by_position": {
                str(first): sums.as_row() for first, sums in positions.items() if sums.num_tokens
            },
        }

    def _add_positions(
        self,
        positions: dict[int, Sums],
        scores: npt.NDArray[np.float64],
        sizes: npt.NDArray[np.int64],
    ) -> None:
        """Add tokens of a window by how many stand before them in it."""
        ends = [*list(positions)[1:], self.lengths[-1]]
        for (first, sums), end in zip(positions.items(), ends, strict=True):
            if first < len(scores):
                sums.add(scores[first:end], sizes[first:end])


def _rows(sums: Mapping[int, Sums]) -> dict[str, Any]:
    return {str(length): found.as_row() for length, found in sums.items()}


def plan_of(args: argparse.Namespace, num_positions: int, tokenizer: Tokenizer) -> Plan:
    """Read the texts that the flags choose. Raises ConfigError or DataError."""
    lengths = args.context_lengths or [size for size in LENGTHS if size <= num_positions]
    lengths = sorted(set(lengths or [num_positions]))
    require(
        lengths[0] >= 1 and lengths[-1] <= num_positions,
        f"--context-lengths {' '.join(map(str, lengths))}: allowed are 1 to the model's {num_positions} positions",
    )
    for name in ("min_tokens", "num_tokens"):
        value = getattr(args, name)
        require(value >= 1, f"--{name.replace('_', '-')} is {value}; allowed: from 1")
    require(
        args.folder is not None or not (args.only or args.concatenate),
        "--only and --concatenate are of files; give --folder",
    )
    if args.folder is not None:
        chosen = _texts_of_folder(args, tokenizer)
    else:
        chosen = _texts_of_datasets(args.data_prefix, tokenizer)
    texts = list(_cut(chosen, args.min_tokens, args.num_tokens))
    where = args.folder or " ".join(args.data_prefix)
    require(
        bool(texts), f"{where} holds no text of {args.min_tokens} tokens; give --min-tokens less"
    )
    sizes = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    return Plan(texts, tuple(lengths), tokenizer.eod, sizes)


def _cut(texts: Iterator[Text], least: int, most: int) -> Iterator[Text]:
    """Yield texts of a size, until there are enough tokens of their group."""
    left: dict[str, int] = {}
    for text in texts:
        room = left.setdefault(text.group, most)
        if len(text.ids) >= least and room > 0:
            left[text.group] = room - len(text.ids)
            yield Text(text.group, text.ids[:room])


def _texts_of_folder(args: argparse.Namespace, tokenizer: Tokenizer) -> Iterator[Text]:
    if not args.folder.is_dir():
        raise ConfigError(f"--folder {args.folder} is no folder")
    by_language: dict[str, list[Path]] = {}
    for path in sorted(args.folder.rglob("*")):
        language = LANGUAGES.get(path.suffix)
        if language and (not args.only or language in args.only) and path.is_file():
            by_language.setdefault(language, []).append(path)
    for language, paths in sorted(by_language.items()):
        if args.concatenate:
            ids: list[int] = []
            for path in paths:
                ids += _ids_of_file(path, tokenizer)
                ids.append(tokenizer.eod)
                if len(ids) > args.num_tokens:
                    break
            yield Text(language, ids[:-1])
            continue
        random.Random(f"{args.seed}/{language}").shuffle(paths)
        taken = 0
        for path in paths:
            if taken >= args.num_tokens:
                break
            text = Text(language, _ids_of_file(path, tokenizer))
            taken += len(text.ids) if len(text.ids) >= args.min_tokens else 0
            yield text


def _ids_of_file(path: Path, tokenizer: Tokenizer) -> list[int]:
    """Give the ids of a file, none of one that is no text."""
    try:
        return tokenizer.tokenize(path.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


def _texts_of_datasets(prefixes: Sequence[str], tokenizer: Tokenizer) -> Iterator[Text]:
    for given in prefixes:
        name, is_named, prefix = given.partition("=")
        name, prefix = (name, prefix) if is_named else (Path(given).name, given)
        dataset = IndexedDataset(prefix)
        for document in range(dataset.num_documents):
            start, stop = dataset.document_start(document), dataset.document_start(document + 1)
            ids = dataset.read(start, stop).tolist()
            if ids and ids[-1] == tokenizer.eod:
                ids.pop()
            if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
                raise DataError(
                    f"{prefix} has id {max(ids)} and the tokenizer ids below {tokenizer.vocab_size}; give the dataset "
                    f"that was made with it"
                )
            yield Text(name, ids)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Give a report for people."""
    lengths = [str(length) for length in report["context_lengths"]]
    of = "" if report["iteration"] is None else f", iteration {report['iteration']}"
    lines = ["# Perplexity", "", f"{report['model']}{of}, {report['num_texts']} texts.", ""]
    for what, title in (("perplexity", "perplexity a token"), ("bits_per_byte", "bits a byte")):
        head = [f"{title}, by context", "tokens", "bytes", *lengths]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, row in [*report["groups"].items(), ("**all**", report["all"])]:
            first = row[lengths[0]]
            cells = [name, str(first["num_tokens"]), str(first["num_bytes"])]
            cells += [f"{row[length][what]:.4f}" for length in lengths]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [f"| tokens before, of {lengths[-1]} | tokens | perplexity |", "|---|---|---|"]
    ends = [*list(report["by_position"])[1:], lengths[-1]]
    for (first, row), end in zip(report["by_position"].items(), ends, strict=True):
        lines.append(
            f"| {first} to {int(end) - 1} | {row['num_tokens']} | {row['perplexity']:.4f} |"
        )
    return "\n".join([*lines, ""])
