"""Which documents of which token files make each set: what the data options say, read and checked.

Three ways to say it, all of them Megatron's or BigCode's:

    --data-path [W] PREFIX …  --split 969,30,1            each file is cut in three
    --train-data-path [W] PREFIX …  (and valid, test)      each set has files of its own
    --train-weighted-split-paths "NAME: W START:END PREFIX, W START:END PREFIX"
                                                           parts of files; several named sets for valid and test

Opens no token file: what is missing or damaged shows when `megatron.data.build` opens it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig

DEFAULT_SPLIT = "969,30,1"
SET_NAMES = ("train", "valid", "test")
QUOTED = re.compile(r'"([^"]*)"')


class Part(Protocol):
    """A part of a token file."""

    def documents(self, num_documents: int) -> range: ...


@dataclass(frozen=True)
class Span:
    """Documents from a fraction of the file to another, as BigCode rounds them."""

    start: float
    end: float

    def documents(self, num_documents: int) -> range:
        """Give the documents of the part, of a file that has num_documents."""
        return range(round(self.start * num_documents), round(self.end * num_documents))


@dataclass(frozen=True)
class Share:
    """The number-th of the consecutive parts whose sizes are in proportion to shares, as Megatron rounds them."""

    shares: tuple[float, ...]
    number: int

    def documents(self, num_documents: int) -> range:
        """Give the documents of the part, of a file that has num_documents."""
        total = sum(self.shares)
        ends = [0]
        for share in self.shares:
            ends.append(ends[-1] + round(share / total * num_documents))
        # Megatron moves all ends by what the last is off; a file of a few documents would start below 0 then.
        off = ends[-1] - num_documents
        ends = [0, *(max(0, end - off) for end in ends[1:])]
        return range(ends[self.number], ends[self.number + 1])


@dataclass(frozen=True)
class Source:
    """A part of one token file and its weight in the set."""

    prefix: str
    weight: Fraction
    part: Part


@dataclass(frozen=True)
class SourceGroup:
    """One set. With `is_by_default`, nobody asked for it: it may be left out where the data is too short."""

    name: str
    sources: tuple[Source, ...]
    is_by_default: bool = False


@dataclass(frozen=True)
class DataPlan:
    """All sets of a run."""

    train: SourceGroup
    valid: tuple[SourceGroup, ...]
    test: tuple[SourceGroup, ...]


def read_data_options(config: DataConfig) -> DataPlan:
    """Read the data options. Raises ConfigError for what does not parse or clashes, DataError for a missing file."""
    if config.data_path:
        return _shared_plan(config)
    train, valid, test = (_groups_of_set(config, name) for name in SET_NAMES)
    if len(train) != 1:
        raise ConfigError(
            f"training takes exactly one group, and {len(train)} are given: {_names(train)}; join their pieces "
            "under one name"
        )
    for name, groups in (("valid", valid), ("test", test)):
        if len({group.name for group in groups}) != len(groups):
            raise ConfigError(
                f"two {name} sets have the same name: {_names(groups)}; give each its own"
            )
    return DataPlan(train[0], valid, test)


def _shared_plan(config: DataConfig) -> DataPlan:
    """Cut each file of --data-path in three."""
    for name in SET_NAMES:
        for option in (f"{name}_data_path", *_group_options(name)):
            if getattr(config, option):
                raise ConfigError(
                    f"{_flag(option)} names the {name} set, and --data-path with --split names all three; keep one"
                )
    shares = _read_split(config.split or DEFAULT_SPLIT)
    entries = _read_paths("--data-path", config.data_path)
    groups = [
        SourceGroup(
            name,
            tuple(Source(prefix, weight, Share(shares, number)) for weight, prefix in entries),
            is_by_default=config.split is None and name != "train",
        )
        for number, name in enumerate(SET_NAMES)
    ]
    train, valid, test = groups
    return DataPlan(train, (valid,) if shares[1] else (), (test,) if shares[2] else ())


def _read_split(text: str) -> tuple[float, ...]:
    """Read --split: up to three numbers of any sum, by commas or slashes."""
    try:
        shares = [float(number) for number in re.split("[,/]", text)]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not all(0 <= share < float("inf") for share in shares):
        raise ConfigError(f"--split {text!r} is not up to three numbers, as {DEFAULT_SPLIT}")
    if shares[0] == 0:
        raise ConfigError(f"--split {text!r} leaves nothing to train on; the first number is its")
    return tuple(shares + [0.0] * (3 - len(shares)))


def _groups_of_set(config: DataConfig, name: str) -> tuple[SourceGroup, ...]:
    """Read whichever of the options that name the set `name` is given."""
    paths = getattr(config, f"{name}_data_path")
    groups_option, file_option = _group_options(name)
    groups, file = getattr(config, groups_option), getattr(config, file_option)
    given = [
        _flag(option)
        for option, value in (
            (f"{name}_data_path", paths),
            (groups_option, groups),
            (file_option, file),
        )
        if value
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both name the {name} set; keep one")
    if paths:
        entries = _read_paths(given[0], paths)
        sources = tuple(Source(prefix, weight, Span(0.0, 1.0)) for weight, prefix in entries)
        return (SourceGroup(name, sources),)
    if file:
        return tuple(_read_group(text, where) for text, where in _read_group_file(Path(file)))
    return tuple(_read_group(text, given[0]) for text in groups)


def _read_paths(flag: str, words: Sequence[str]) -> list[tuple[Fraction, str]]:
    """Read PREFIX, or W PREFIX W PREFIX …"""
    if len(words) == 1:
        return [(Fraction(1), _checked_prefix(words[0], flag))]
    if len(words) % 2:
        raise ConfigError(
            f"{flag} takes one prefix, or a weight before each; it has {len(words)} words: {' '.join(words)}"
        )
    return [
        (_read_weight(weight, flag), _checked_prefix(prefix, flag))
        for weight, prefix in zip(words[0::2], words[1::2], strict=True)
    ]


def _read_group_file(path: Path) -> list[tuple[str, str]]:
    """Give each group of a file with where it stands: quoted, several a line, or unquoted, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, which should hold weighted groups, cannot be read: {error}"
        ) from None
    groups = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if '"' not in line:
            groups.append((line, where))
            continue
        if QUOTED.sub("", line).strip():
            raise ConfigError(
                f"{where}: {QUOTED.sub('', line).strip()!r} stands outside of quotes; write each group as "
                '"NAME: W START:END PREFIX, …"'
            )
        groups += [(text, where) for text in QUOTED.findall(line)]
    if not groups:
        raise DataError(f'{path} holds no group; write "NAME: W START:END PREFIX, …" into it')
    return groups


def _read_group(text: str, where: str) -> SourceGroup:
    """Read NAME: W START:END PREFIX, W START:END PREFIX."""
    name, colon, pieces = text.partition(":")
    name = name.strip()
    if not colon or not name or not pieces.strip():
        raise ConfigError(
            f'{where}: the group {text!r} is not "NAME: W START:END PREFIX, …"; on a command line, put quotes '
            "around each group"
        )
    sources = tuple(_read_piece(piece, f"{where}, group {name}") for piece in pieces.split(","))
    return SourceGroup(name, sources)


def _read_piece(text: str, where: str) -> Source:
    words = text.split(maxsplit=2)
    start, colon, end = words[1].partition(":") if len(words) == 3 else ("", "", "")
    try:
        span = Span(float(start), float(end))
    except ValueError:
        span = None
    if span is None or not colon:
        raise ConfigError(
            f"{where}: {text.strip()!r} is not W START:END PREFIX, as 0.5 0:0.95 data/py_text_document "
            "(a prefix cannot hold a comma, nor a name a colon)"
        )
    if not 0.0 <= span.start < span.end <= 1.0:
        raise ConfigError(f"{where}: {words[1]} in {text.strip()!r} is not 0 <= START < END <= 1")
    return Source(_checked_prefix(words[2].strip(), where), _read_weight(words[0], where), span)


def _read_weight(text: str, where: str) -> Fraction:
    try:
        weight = Fraction(text)  # exact: 0.3 is three tenths
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise ConfigError(
            f"{where}: {text!r} stands where a weight is expected; give a number above 0"
        )
    return weight


def _checked_prefix(prefix: str, where: str) -> str:
    if prefix.endswith((".bin", ".idx")) and not Path(f"{prefix}.idx").exists():
        raise ConfigError(
            f"{where}: {prefix} is one of a dataset's two files; give their prefix, {prefix[:-4]}"
        )
    return prefix


def _group_options(name: str) -> tuple[str, str]:
    return f"{name}_weighted_split_paths", f"{name}_weighted_split_paths_path"


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _names(groups: Sequence[SourceGroup]) -> str:
    return ", ".join(group.name for group in groups) or "none"
