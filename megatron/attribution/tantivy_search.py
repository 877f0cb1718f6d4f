"""The words of documents by tantivy, where that is installed: a third of the size, answers in a millisecond.

Its folder takes the place of the SQLite file; the words are the same. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron.attribution.search import WORD, Candidate
from megatron.checksum import hash_file
from megatron.errors import ConfigError, DataError

VERSION = 1
FACTS = "facts.json"
MEMORY = 200_000_000  # bytes of the words that are not yet on disk


def build_tantivy(folder: Path, texts: Iterable[tuple[int, str]], facts: Mapping[str, Any]) -> None:
    """Index documents, given with their numbers, into a new folder; facts: what it says of itself.

    A folder that was cut short is refused by `TantivyIndex`: write it aside and publish it. Raises ConfigError where
    tantivy is missing, DataError where the folder cannot be written.
    """
    tantivy = _tantivy()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        index = tantivy.Index(_schema(tantivy), str(folder))
        _add_words(tantivy, index)
        writer = index.writer(MEMORY, 1)  # one thread: documents keep their order
        for number, text in texts:
            document = tantivy.Document()
            document.add_unsigned("document", number)
            document.add_text("text", text)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        sums = {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.suffix != ".lock"
        }
        values = {**facts, "version": VERSION, "sha256": sums}
        (folder / FACTS).write_text(json.dumps(values), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} cannot be written: {error}; make room, and build it again"
        ) from error


class TantivyIndex:
    """An index opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Open an index. Raises DataError if it is missing, damaged, cut short or of another version."""
        self.path = folder
        self._tantivy = _tantivy()
        self._schema = _schema(self._tantivy)
        try:
            self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            version = self.facts.get("version")
            if version != VERSION:
                raise ValueError(f"it has version {version}, this program reads {VERSION}")
            self.num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            index = self._tantivy.Index.open(str(folder))
            _add_words(self._tantivy, index)
            self._searcher = index.searcher()
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{folder} cannot be used: {error}; build it again") from error

    def candidates(self, text: str, limit: int) -> list[Candidate]:
        """Give the documents with the best BM25 for the words of a text, the best first."""
        tantivy = self._tantivy
        words = sorted({word.lower() for word in WORD.findall(text)})
        terms = [tantivy.Query.term_query(self._schema, "text", word) for word in words]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        hits = self._searcher.search(query, limit).hits
        return [
            Candidate(self._searcher.doc(address)["document"][0], score) for score, address in hits
        ]

    def verify(self, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Read all of it; raise DataError if a file is missing or another than was written."""
        for name, wanted in self.facts["sha256"].items():
            path = self.path / name
            if not path.is_file() or hash_file(path) != wanted:
                raise DataError(f"{path} is missing or damaged; build the index again")
            on_bytes(path.stat().st_size)


def _tantivy() -> ModuleType:
    try:
        import tantivy
    except ImportError:
        raise ConfigError(
            "this index is tantivy's, which is not installed: pip install tantivy, or build with "
            "--search-engine sqlite"
        ) from None
    module: ModuleType = tantivy
    return module


def _schema(tantivy: ModuleType) -> object:
    schema = tantivy.SchemaBuilder()
    schema.add_unsigned_field("document", stored=True)
    schema.add_text_field("text", tokenizer_name="words", index_option="freq")
    return schema.build()


def _add_words(tantivy: ModuleType, index: Any) -> None:
    analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(WORD.pattern))
    index.register_tokenizer("words", analyzer.filter(tantivy.Filter.lowercase()).build())
