"""From text files to token files: read, encode in parallel, write in the order of the input or shuffled.

This process reads compressed files in a thread and writes; workers read plain files, parse and encode. The bytes
written depend on the inputs, the tokenizer and the flags, never on the number of workers. Nothing is seen under the
final names before all of it is written. Knows nothing of samples.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron.data.indexed_dataset import id_dtype
from megatron.data.preprocessing.chunk_encoder import (
    NUM_NAMED,
    ChunkEncoder,
    EncodedChunk,
    Splitter,
)
from megatron.data.preprocessing.conversation_encoder import ConversationEncoder
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.document_reader import Chunk, Part, load, read_chunks
from megatron.data.preprocessing.documents import Documents
from megatron.data.preprocessing.formatted import SENTINELS, check_sentinels
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.ordered_map import Workers, in_thread
from megatron.data.preprocessing.records import BadRecord
from megatron.data.preprocessing.shuffle import DocumentShuffler
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.tokenizer.chat_template import ChatEncoder, choose_template
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

CHUNKS_AHEAD = 4  # read, or decompressed, before a worker asks for them

Sink = Callable[[Documents], None]
Progress = Callable[[int], None]


@dataclass
class Summary:
    """Counts of a whole run. For each key: num_read = documents + empty + bad + blank."""

    num_read: int = 0
    num_blank: int = 0
    num_bytes: int = 0  # of text, UTF-8
    bad: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    fields: set[str] = field(default_factory=set)  # of provenance that a document has a value for

    def describe(self, key: str) -> str:
        """Say in one line what became of every record under a key."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common())
        bad = f"{self.bad.total():,} bad" + (f" ({reasons})" if reasons else "")
        return (
            f"{self.num_read:,} records = {self.documents[key]:,} documents + {self.empty[key]:,} empty + "
            f"{bad} + {self.num_blank:,} blank; {self.tokens[key]:,} tokens"
        )


def preprocess(
    config: PreprocessConfig,
    tokenizer: Tokenizer,
    *,
    on_read: Progress = lambda num_bytes: None,
    on_shuffled: Callable[[int, int], None] = lambda num_tokens, total: None,
) -> Summary:
    """Write PREFIX_KEY_document for every key.

    on_read is told of input bytes as they are done, on_shuffled then of tokens and how many there are. Forks.
    Raises DataError for input that cannot be read, for a bad record with `strict`, where no document is left (of a
    shard, which may have none, that is only said), and where the disk is full.
    """
    parts = config.parts()
    fields = config.provenance_keys
    encoder = _encoder(config, tokenizer)
    # Of Parquet, texts are of columns of strings; a conversation is read as provenance is.
    texts = config.json_keys if config.messages_key is None else ()
    columns = [*fields, SENTINELS if config.messages_key is None else config.messages_key]
    dtype = id_dtype(tokenizer.vocab_size)
    try:
        with (
            Workers(encoder, config.workers, fetch=load) as workers,
            contextlib.ExitStack() as stack,
        ):
            writers = {
                key: stack.enter_context(
                    DatasetWriter(
                        config.prefix_of(key), dtype, fields, config.origin(key, tokenizer)
                    )
                )
                for key in config.keys
            }
            shufflers = {
                key: stack.enter_context(
                    DocumentShuffler(Path(config.prefix_of(key)).parent, config.order_seed)
                )
                for key in config.keys
                if config.shuffle
            }
            chunks = itertools.chain.from_iterable(
                read_chunks(part, texts, columns, max_records=config.chunk_size) for part in parts
            )
            ahead = stack.enter_context(contextlib.closing(in_thread(chunks, CHUNKS_AHEAD)))
            sinks: dict[str, Sink] = {key: (shufflers or writers)[key].add for key in config.keys}
            encoded = workers.map(ahead)
            if config.messages_key is None and not config.formatted:
                encoded = _warn_if_formatted(encoded)
            summary = _write(encoded, sinks, strict=config.strict, on_read=on_read)
            _check_summary(summary, config)
            for key, shuffler in shufflers.items():
                for documents in shuffler.in_order():
                    writers[key].add(documents)
                    on_shuffled(len(documents.ids), summary.tokens.total())
            for writer in writers.values():
                writer.complete()
            for writer in writers.values():
                writer.publish()
    except OSError as error:
        raise DataError(
            f"{error.filename or config.output_prefix}: {error.strerror or error}; the output is not complete, and "
            "nothing of it was kept"
        ) from error
    return summary


def _encoder(config: PreprocessConfig, tokenizer: Tokenizer) -> Callable[[Chunk], EncodedChunk]:
    if config.messages_key is not None:
        chat = ChatEncoder(tokenizer, choose_template(config.chat_template, tokenizer))
        return ConversationEncoder(chat, config.messages_key, config.provenance_keys)
    splitter = sentence_splitter(config.language) if config.split_sentences else None
    if config.formatted:
        check_sentinels(tokenizer, "--formatted")
    return ChunkEncoder(
        tokenizer,
        config.json_keys,
        config.provenance_keys,
        config.append_eod,
        splitter,
        config.formatted,
    )


def _write(
    encoded: Iterable[EncodedChunk], sinks: dict[str, Sink], *, strict: bool, on_read: Progress
) -> Summary:
    """Hand every chunk to the outputs and count what became of its records."""
    summary = Summary()
    # records of each part, without those before it in its file
    num_before: Counter[Part] = Counter()
    for chunk in encoded:
        if strict and chunk.named:
            raise DataError(
                f"{_place(chunk, chunk.named[0], num_before)}; fix it, or leave out --strict to skip such records"
            )
        for record in chunk.named[: max(NUM_NAMED - summary.bad.total(), 0)]:
            logger.warning("skipped %s", _place(chunk, record, num_before))
        num_before[chunk.part] += chunk.num_read
        summary.num_read += chunk.num_read
        summary.num_blank += chunk.num_blank
        summary.num_bytes += chunk.num_text_bytes
        summary.bad += chunk.bad
        for key, documents in chunk.documents.items():
            sinks[key](documents)
            summary.documents[key] += len(documents)
            summary.empty[key] += chunk.num_empty[key]
            summary.tokens[key] += len(documents.ids)
            summary.fields |= {
                name
                for name, column in documents.provenance.items()
                if column.null_count < len(documents)
            }
        on_read(chunk.num_input_bytes)
    return summary


def _warn_if_formatted(encoded: Iterable[EncodedChunk]) -> Iterator[EncodedChunk]:
    """Give the chunks, and say it once if their records say where sentinels are that nobody asked for."""
    is_said = False
    for chunk in encoded:
        if chunk.num_formatted and not is_said:
            is_said = True
            logger.warning(
                "%s has %r, as tools/curate.py format writes it: without --formatted its sentinels become text",
                chunk.part.path,
                SENTINELS,
            )
        yield chunk


def _place(chunk: EncodedChunk, record: BadRecord, num_before: Counter[Part]) -> str:
    """Say where a bad record is and why it is one."""
    number = chunk.part.records_before() + num_before[chunk.part] + record.number
    return f"{chunk.part.path}:{number}: {record.reason}"


def _check_summary(summary: Summary, config: PreprocessConfig) -> None:
    if any(summary.documents.values()):
        for name in set(config.provenance_keys) - summary.fields:
            logger.warning(
                "no record has a value for --provenance-keys %s; is it spelled as in the input?",
                name,
            )
        return
    counts = summary.describe(config.keys[0])
    if config.shard is None:
        raise DataError(f"no document in {', '.join(config.input)}: {counts}")
    logger.warning("shard %s holds no document: %s", config.shard, counts)


def sentence_splitter(lang: str) -> Splitter:
    """Give nltk's sentence splitter, trained for a language if that data is installed, else its general rules."""
    try:
        from nltk.tokenize import punkt
    except ImportError:
        raise DataError("--split-sentences needs: pip install nltk") from None
    try:
        return punkt.PunktTokenizer(lang).tokenize
    except LookupError:
        logger.warning(
            "nltk has no sentence data for %s here: splitting by its general rules, which know no abbreviations",
            lang,
        )
        return punkt.PunktSentenceTokenizer().tokenize
