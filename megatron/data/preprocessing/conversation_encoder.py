"""What a worker of preprocessing makes of a chunk of conversations: documents whose items tell context from answer.

A conversation is one document. Its items are context, answer, context, answer, …: the odd ones carry loss, so that
what is learned travels with the ids through merging, shuffling, shards and opt-outs, in Megatron's own format.
`PREFIX.origin.json` says that a dataset is written so, and by which template. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.data.indexed_dataset import id_dtype
from megatron.data.preprocessing.chunk_encoder import EncodedChunk, provenance_columns
from megatron.data.preprocessing.document_reader import Chunk
from megatron.data.preprocessing.documents import Documents
from megatron.data.preprocessing.records import parse_chunk
from megatron.tokenizer.chat_template import ChatEncoder, Pieces, read_messages, why_unusable


@dataclass(frozen=True)
class ConversationEncoder:
    """Parses and encodes one chunk."""

    chat: ChatEncoder
    key: str
    fields: tuple[str, ...] = ()

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        records = parse_chunk(chunk, [self.key], self.fields, why_unusable=why_unusable)
        parts: list[Pieces] = []
        num_items, num_text_bytes = [], 0
        for value in records.texts[self.key]:
            messages = read_messages(value)
            num_text_bytes += sum(len(message.content.encode()) for message in messages)
            laid_out = self.chat.conversation(messages)
            num_items.append(len(laid_out))
            parts += laid_out
        ids, sizes = self.chat.encode(parts)
        columns = provenance_columns(records.fields, np.ones(len(num_items), np.bool_))
        documents = Documents(
            ids.astype(id_dtype(self.chat.vocab_size), copy=False),
            sizes,
            np.array(num_items, np.int64),
            columns,
        )
        return EncodedChunk.of(chunk, records, {self.key: documents}, num_text_bytes)
