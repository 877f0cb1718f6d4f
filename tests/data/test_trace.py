"""A sample is traced to the very tokens that reading it gives."""

import json

import numpy as np
import pytest

from megatron.data.build import build_datasets
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.provenance import ProvenanceWriter, provenance_path
from megatron.data.trace import Tracer
from megatron.errors import DataError
from megatron.options import DataConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def numbers():
    return build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=5000))


def write(prefix, sizes, first, *, repo=None):
    """Write documents of which token i of the file is number first + i."""
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for size in sizes:
            builder.add_document(np.arange(first, first + size))
            first += size
        builder.finalize()
    if repo:
        writer = ProvenanceWriter(provenance_path(prefix), ["repo", "path"])
        count = range(len(sizes))
        writer.add({"repo": [repo] * len(sizes), "path": [f"{n}.py" for n in count]})
        writer.close()
    return str(prefix)


@pytest.fixture
def prefixes(tmp_path):
    return [
        write(tmp_path / "a", [3, 40, 0, 0, 1, 17, 90, 0] * 3, 0, repo="octocat/a"),
        write(tmp_path / "b", [5] * 60, 1000),
    ]


def tokens_of(traced):
    """Read what a trace names, straight from the token file."""
    indexed = IndexedDataset(traced.prefix)
    window = []
    for span in traced.spans:
        start = indexed.document_start(span.document)
        assert indexed.document_start(span.document + 1) - start == span.num_document_tokens
        assert span.first + len(span.tokens) <= span.num_document_tokens
        assert span.tokens.start == len(window)
        window += indexed.tokens[
            start + span.first : start + span.first + len(span.tokens)
        ].tolist()
    return window


@pytest.mark.parametrize("excludes", [False, True])
def test_trace_names_the_tokens_that_a_sample_gives(numbers, prefixes, tmp_path, excludes):
    options = {}
    if excludes:
        path = tmp_path / "optout.jsonl"
        lines = [{"dataset": "b", "document": n} for n in range(0, 60, 7)]
        lines += [{"dataset": "a", "path": f"{n}.py"} for n in (5, 6, 12)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = {"exclude_documents": (str(path),)}
    config = DataConfig(
        seq_length=32, train_data_path=("2", prefixes[0], "1", prefixes[1]), **options
    )
    dataset = build_datasets(config, numbers, seed=1).train
    tracer = Tracer(dataset)
    seen = set()
    for index in range(80):  # several epochs of both
        traced, sample = tracer.trace(index), dataset[index]
        assert tokens_of(traced) == [*sample["tokens"].tolist(), sample["labels"][-1]]
        assert traced.source in ("train/a", "train/b")
        for span in traced.spans:
            seen.add((traced.source, span.document))
            expected = {"repo": "octocat/a", "path": f"{span.document}.py"}
            assert span.provenance == (expected if traced.source == "train/a" else None)
    skipped = {("train/b", n) for n in range(0, 60, 7)} | {("train/a", n) for n in (5, 6, 12)}
    assert bool(seen & skipped) != excludes


def test_side_file_of_another_dataset_is_refused(numbers, prefixes, tmp_path):
    other = write(tmp_path / "c", [50], 0, repo="x")
    provenance_path(other).replace(provenance_path(prefixes[0]))
    dataset = build_datasets(
        DataConfig(seq_length=32, train_data_path=(prefixes[0],)), numbers, seed=1
    ).train
    with pytest.raises(DataError, match=r"has 1 rows, and .* 24 documents"):
        Tracer(dataset).trace(0)


@pytest.mark.parametrize("excludes", [False, True])
@pytest.mark.parametrize("is_blend", [False, True])
def test_samples_of_a_document_are_those_whose_trace_names_it(
    numbers, prefixes, tmp_path, excludes, is_blend
):
    options = {}
    if excludes:
        path = tmp_path / "optout.jsonl"
        path.write_text("".join(f'{{"dataset": "a", "document": {n}}}\n' for n in (1, 5, 6, 14)))
        options = {"exclude_documents": (str(path),)}
    paths = ("2.5", prefixes[0], "1", prefixes[1]) if is_blend else (prefixes[0],)
    config = DataConfig(seq_length=32, train_data_path=paths, **options)
    dataset = build_datasets(config, numbers, seed=3).train
    tracer, limit = Tracer(dataset), 75
    expected = {}
    for sample in range(limit):
        traced = tracer.trace(sample)
        for span in traced.spans:
            expected.setdefault((traced.prefix, span.document), set()).add(sample)
    for prefix in prefixes[: 1 + is_blend]:
        for document in range(IndexedDataset(prefix).num_documents):
            found = tracer.samples_of(prefix, document, limit)
            assert found == sorted(expected.get((prefix, document), set()))
    assert max(len(samples) for samples in expected.values()) > 3
    with pytest.raises(DataError, match="reads no token file 'c'"):
        tracer.samples_of("c", 0, limit)
    with pytest.raises(DataError, match="has no document 24"):
        tracer.samples_of("a", 24, limit)
