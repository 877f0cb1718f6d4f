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
from typing import Literal

from megatron.data.document_reader import Chunk, Part, check_inputs, load, plan_parts, read_chunks
from megatron.data.formatted import SENTINELS, check_sentinels
from megatron.data.indexed_dataset import id_dtype
from megatron.data.ordered_map import Workers, in_thread
from megatron.data.origin import CONVERSATIONS, Origin
from megatron.data.preprocessing.chunk_encoder import (
    NUM_NAMED,
    ChunkEncoder,
    EncodedChunk,
    Splitter,
)
from megatron.data.preprocessing.conversation_encoder import ConversationEncoder
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.documents import Documents
from megatron.data.preprocessing.shuffle import DocumentShuffler
from megatron.data.provenance import check_fields
from megatron.data.records import BadRecord
from megatron.data.shards import Shard
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.option_field import option, require
from megatron.tokenizer.chat_template import ChatEncoder, choose_template
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

CHUNKS_AHEAD = 4  # read, or decompressed, before a worker asks for them

Sink = Callable[[Documents], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class PreprocessConfig:
    """What is read and how it is written; with the tokenizer's flags, all of tools/preprocess_data.py."""

    input: tuple[str, ...] = option(
        (), ".jsonl, .json (one object a line), these as .gz or .zst, and .parquet", metavar="FILE"
    )
    output_prefix: str | None = option(
        None, "files are PREFIX_KEY_document.bin, .idx and .sha256", metavar="PREFIX"
    )
    json_keys: tuple[str, ...] = option(
        ("text",), "keys or columns that hold text; an output for each", metavar="KEY"
    )
    messages_key: str | None = option(
        None,
        "in place of --json-keys: key or column that holds a conversation, a list of {role, content}; training then "
        "has loss on the answers only",
        metavar="KEY",
    )
    chat_template: str | None = option(
        None,
        "with --messages-key: starchat, plain, or a file of JSON (default: starchat if the tokenizer has its "
        "sentinels, else plain)",
        metavar="NAME",
    )
    provenance_keys: tuple[str, ...] = option(
        (),
        "keys or columns whose values are kept for each document, in PREFIX_KEY_document.provenance.arrow",
        metavar="KEY",
    )
    formatted: bool = option(
        False,
        "records of tools/curate.py format: the sentinels that it wrote become their ids, what else spells one is text",
    )
    append_eod: bool = option(False, "end every document with the end-of-document id")
    split_sentences: bool = option(
        False, "one item a sentence (nltk); files are named PREFIX_KEY_sentence"
    )
    lang: str | None = option(
        None,
        "with --split-sentences: language of nltk's splitter, if its data is installed (default: english)",
    )
    shuffle: bool = option(
        False, "write the documents in a random order; needs twice the space while it runs"
    )
    seed: int | None = option(None, "with --shuffle: another order (default: 1234)")
    shard: str | None = option(
        None,
        "read only the i-th of n equal shares of the input, and name the files "
        "PREFIX_KEY_document_0000i-of-0000n; tools/merge_datasets.py joins them",
        metavar="i/n",
    )
    strict: bool = option(
        False, "stop at the first record that cannot be used, instead of skipping"
    )
    workers: int = option(1, "processes that encode")
    chunk_size: int | None = option(
        None, "most documents handed to a worker at a time (default: about 1 MB, which is faster)"
    )
    dataset_impl: Literal["mmap"] = option("mmap", "the only format; accepted for Megatron's sake")

    def check(self) -> None:
        require(
            bool(self.input),
            "no --input; give .jsonl, .json, .jsonl.gz, .jsonl.zst or .parquet files",
        )
        require(
            self.output_prefix is not None,
            "no --output-prefix; files are named PREFIX_text_document.bin",
        )
        require(self.workers > 0, f"--workers is {self.workers}; give 1 or more")
        require(
            self.chunk_size is None or self.chunk_size > 0,
            f"--chunk-size is {self.chunk_size}; give 1 or more",
        )
        require(len(set(self.json_keys)) == len(self.json_keys), "--json-keys names a key twice")
        require(
            self.messages_key is None or self.json_keys == ("text",),
            "--messages-key and --json-keys both say what is read; keep one",
        )
        require(
            self.messages_key is None or not (self.split_sentences or self.formatted),
            "--split-sentences and --formatted are of texts, and --messages-key reads conversations; keep one",
        )
        require(
            self.chat_template is None or self.messages_key is not None,
            f"--chat-template {self.chat_template} is of --messages-key; add that, or leave it out",
        )
        require(
            self.lang is None or self.split_sentences,
            f"--lang {self.lang} is of --split-sentences; add that, or leave --lang out",
        )
        require(
            self.seed is None or self.shuffle,
            f"--seed {self.seed} is of --shuffle; add that, or leave --seed out",
        )
        if self.formatted:
            require(
                len(self.json_keys) == 1 and not self.split_sentences,
                "--formatted says where the sentinels of one text are; leave out --split-sentences and further "
                "--json-keys",
            )
        if self.provenance_keys:
            check_fields(self.provenance_keys)
        if self.shard is not None:
            Shard.parse(self.shard)

    @property
    def keys(self) -> tuple[str, ...]:
        """Name the keys that are read, each into a dataset of its own."""
        return self.json_keys if self.messages_key is None else (self.messages_key,)

    @property
    def language(self) -> str:
        """Name the language that sentences are split by."""
        return "english" if self.lang is None else self.lang

    @property
    def order_seed(self) -> int:
        """Give the seed of a random order of documents."""
        return 1234 if self.seed is None else self.seed

    def prefix_of(self, key: str) -> str:
        """Name the output of a key."""
        level = "sentence" if self.split_sentences else "document"
        prefix = f"{self.output_prefix}_{key}_{level}"
        return prefix if self.shard is None else Shard.parse(self.shard).name(prefix)

    def parts(self) -> list[Part]:
        """Give what is to be read; DataError for inputs that cannot be."""
        paths = [Path(path) for path in self.input]
        check_inputs(paths)
        shard = Shard() if self.shard is None else Shard.parse(self.shard)
        return plan_parts(paths, shard.number, shard.count)

    def origin(self, key: str, tokenizer: Tokenizer) -> Origin:
        """Give what decides the bytes of a key's output, but for what is in the input."""
        origin: Origin = {}
        if self.messages_key is not None:
            template = choose_template(self.chat_template, tokenizer)
            origin[CONVERSATIONS] = template.to_json()
        origin |= {
            "tokenizer": tokenizer.fingerprint(),
            "key": key,
            "json_keys": list(self.keys),
            "append_eod": self.append_eod,
            "split_sentences": self.language if self.split_sentences else None,
            "shuffle": self.order_seed if self.shuffle else None,
            "input": [[Path(path).name, Path(path).stat().st_size] for path in self.input],
            "shard": self.shard,
        }
        if self.formatted:  # not said by older versions
            origin["formatted"] = True
        return origin


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
            if not config.formatted:
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
