"""Token files of real source with all indexes, and a tokenizer of one id for each byte for what is compared by hand."""

import numpy as np
import pytest

from megatron.attribution.build import build, plan
from megatron.attribution.corpus import open_token_files
from megatron.attribution.kinds import KINDS
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.provenance import ProvenanceWriter, provenance_path
from megatron.tokenizer.tokenizer import NullTokenizer
from tests.data.conftest import source_texts, tokenizer, tokenizer_file  # noqa: F401


class ByteTokenizer(NullTokenizer):
    """Id = byte; 256 ends a document."""

    def __init__(self):
        super().__init__(256)

    def tokenize_batch(self, texts):
        return [list(text.encode()) for text in texts]

    def detokenize(self, ids):
        return bytes(ids).decode()

    def token_bytes(self, token):
        return b"" if token == self.eod else bytes([token])


@pytest.fixture(scope="session")
def by_bytes():
    return ByteTokenizer()


def write(prefix, texts, tokenizer, *, dtype=np.uint16, rows=None, eod=True):  # noqa: F811
    """Write texts as a token file, with the rows of its provenance."""
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for text in texts:
            ids = tokenizer.encode_batch([text])[0]
            builder.add_document(np.append(ids, [tokenizer.eod] * eod).astype(dtype))
        builder.finalize()
    if rows is not None:
        writer = ProvenanceWriter(provenance_path(prefix), list(rows))
        writer.add(rows)
        writer.close()
    return str(prefix)


def index(prefixes, tokenizer, *kinds, opt_out=(), again=False, **options):  # noqa: F811
    """Build indexes and open the token files."""
    import contextlib

    chosen = BuildOptions(**options)
    tasks = plan(prefixes, kinds or list(KINDS), chosen, again=again)
    build(tasks, tokenizer, chosen, lambda name, total: contextlib.nullcontext(lambda done: None))
    return open_token_files(prefixes, opt_out=opt_out), Spelling(tokenizer)
