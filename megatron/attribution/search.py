"""The words of documents in one SQLite file, by its full-text engine FTS5.

With their places but without the text: 0.25 bytes for a byte of text. Of a query only the rarest words are looked up,
for the others are in so many documents that they tell little and cost most. Knows nothing of tokens.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import DataError

VERSION = 1
# Letters, digits and the underscore make words, in lower case. Accents count.
TOKENIZER = "unicode61 remove_diacritics 0 tokenchars '_'"
BUILD_CACHE_KIB = 200_000
MAX_WORDS = 16  # of a query that are looked up: the rarest
# documents that hold them, counted for each word: what bounds the time of a query
MAX_POSTINGS = 20_000
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A document that shares words with a query."""

    document: int
    score: float  # BM25, higher is better; of one index


def build_search(path: Path, texts: Iterable[tuple[int, str]], facts: Mapping[str, Any]) -> None:
    """Index documents, given with their numbers in rising order, into a new file; facts: what it says of itself.

    Memory is BUILD_CACHE_KIB, however many there are. The file is not forced to disk, and one that was cut short is
    refused by `SearchIndex`: write it aside and publish it. Raises DataError where it cannot be written.
    """
    path.unlink(missing_ok=True)
    with _errors_named(path), contextlib.closing(sqlite3.connect(path)) as database:
        # No journal: the whole file is thrown away if this does not end.
        database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{BUILD_CACHE_KIB};"
            "CREATE TABLE facts (version INTEGER, json TEXT);"
            f'CREATE VIRTUAL TABLE words USING fts5(text, content="", tokenize="{TOKENIZER}");'
            "CREATE VIRTUAL TABLE counts USING fts5vocab(words, row);"
        )
        database.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", texts)
        database.execute("INSERT INTO words(words) VALUES ('optimize')")
        database.execute("INSERT INTO facts VALUES (?, ?)", (VERSION, json.dumps(facts)))
        database.commit()


class SearchIndex:
    """An index opened for reading. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open an index. Raises DataError if it is missing, damaged, cut short or of another version."""
        if not path.is_file():
            prefix = path.with_suffix("")
            raise DataError(
                f"{path} does not exist; make it with tools/attribute.py build --kinds search {prefix}"
            )
        self.path = path
        self.num_bytes = path.stat().st_size
        with self._errors_named():
            # immutable: read-only folders serve, and no lock file is written
            uri = f"{path.resolve().as_uri()}?immutable=1"
            self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
            rows = self._database.execute("SELECT version, json FROM facts").fetchall()
        if len(rows) != 1 or rows[0][0] != VERSION:
            found = f"has version {rows[0][0]}" if rows else "was cut short"
            raise DataError(f"{path} {found}, this program reads version {VERSION}; build it again")
        self.facts: dict[str, Any] = json.loads(rows[0][1])

    def candidates(self, text: str, limit: int) -> list[Candidate]:
        """Give the documents with the best BM25 for the rarest words of a text, the best first."""
        words = self._rarest(text)
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        with self._errors_named():
            rows = self._database.execute(
                "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?",
                (query, limit),
            )
            return [Candidate(document, -rank) for document, rank in rows]

    def verify(self, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Read all of it; raise DataError if SQLite finds a page damaged."""
        with self._errors_named():
            (finding,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
        if finding != "ok":
            raise DataError(f"{self.path} is damaged: {finding}; build it again")
        on_bytes(self.num_bytes)

    def _rarest(self, text: str) -> list[str]:
        """Choose the words to look up: from the rarest on, as many as are cheap; at least one."""
        words = sorted({word.lower() for word in WORD.findall(text)})
        counts: list[tuple[int, str]] = []
        with self._errors_named():
            for word in words:  # each a search in the tree of words
                row = self._database.execute(
                    "SELECT doc FROM counts WHERE term = ?", (word,)
                ).fetchone()
                if row is not None:
                    counts.append((row[0], word))
        chosen: list[str] = []
        num_postings = 0
        for count, word in sorted(counts):
            num_postings += count
            if chosen and (len(chosen) == MAX_WORDS or num_postings > MAX_POSTINGS):
                break
            chosen.append(word)
        return chosen

    def _errors_named(self) -> contextlib.AbstractContextManager[None]:
        return _errors_named(self.path)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a file into a DataError that names it."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(
            f"{path} cannot be used: {error}; if the disk is not full, build it again"
        ) from error
