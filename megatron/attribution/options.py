"""How indexes are built (flags of `attribute.py build`), and what is looked up in them when a model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.option_field import check_bounds, option, require


@dataclass(frozen=True)
class BuildOptions:
    """How indexes are built."""

    memory: float = option(
        4.0,
        "gigabytes that building may take, checked before it starts. An exact trace takes 12 bytes a token at uint16 "
        "ids and 17 at int32, of as many tokens at a time as fit; a filter that is larger takes more passes",
        metavar="GB",
        above=0,
    )
    threads: int = option(1, "threads that compute fingerprints", minimum=1)
    line_starts: bool = option(
        False,
        "trace: only places where a line starts, a tenth of the size. What is found is exact for spans that begin "
        "there, and carried on to the left from them",
    )
    false_positives: float = option(
        1e-6,
        "membership: rate of false positives of one look-up",
        metavar="RATE",
        above=0,
        below=0.5,
    )
    gram: int = option(
        50, "membership: bytes of normalised text that a fingerprint is of", minimum=8
    )
    window: int = option(
        50,
        "membership: of so many grams in a row one is kept; any shared run of gram + window - 1 bytes is found",
        minimum=1,
        maximum=1 << 16,
    )

    search_engine: Literal["sqlite", "tantivy"] = option(
        "sqlite",
        "search: what keeps the words. tantivy (pip install tantivy) takes a third of the room and of the time of "
        "a question, and longer to build",
    )

    def check(self) -> None:
        """Raise ConfigError for values that cannot be."""
        check_bounds(self)
        require(
            self.false_positives >= 1e-12,
            f"--false-positives {self.false_positives:g}: the smallest is 1e-12",
        )
        require(self.gram <= 1 << 16, f"--gram {self.gram}: at most 65536")

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 1e9)


@dataclass(frozen=True)
class ReviewOptions:
    """Where text is looked up, and what follows from it."""

    attribution: tuple[str, ...] = option(
        (),
        "token files whose indexes (tools/attribute.py build) say where a text stands in them",
        metavar="PREFIX",
    )
    exclude_documents: tuple[str, ...] = option(
        (), "opt-out lists, as for training: what they name is not found", metavar="LIST"
    )
    verbatim: Literal["report", "withhold"] = option(
        "report",
        "what to do with a text of which --verbatim-bytes in a row stand in them: report says so, withhold gives none",
    )
    verbatim_bytes: int = option(
        400, "of a run, from which on it is too long; about ten lines", minimum=1
    )

    def check(self) -> None:
        """Raise ConfigError for a number outside its bounds, or what needs --attribution."""
        check_bounds(self)
        is_asked = bool(self.exclude_documents) or self.verbatim == "withhold"
        require(
            bool(self.attribution) or not is_asked,
            "--exclude-documents and --verbatim withhold need --attribution PREFIX: where to look",
        )
