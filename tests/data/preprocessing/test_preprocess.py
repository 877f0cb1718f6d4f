import errno
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.permutation import keyed_word, random_word
from megatron.data.preprocessing import document_reader
from megatron.data.preprocessing.chunk_encoder import NUM_NAMED
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.document_reader import CHUNK_BYTES
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.provenance import Provenance
from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[3]
rng = random.Random(3)
WORDS = ["def", "return", "x1", "\u00e9t\u00e9", "<|endoftext|>", "\n    ", "==", "2023", "\r\n"]
TEXTS = [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(300)]


@pytest.fixture(scope="module")
def definition():
    return train_tokenizer(TEXTS, 400)


@pytest.fixture
def tokenizer(definition, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(tokenizer, tmp_path, rows, name="out", **options):
    """Preprocess rows and open the output of the key "text"; also give the summary."""
    source = write_lines(tmp_path / "in.jsonl", rows)
    config = PreprocessConfig(
        input=(source,), output_prefix=str(tmp_path / name), append_eod=True, **options
    )
    summary = preprocess(config, tokenizer)
    return IndexedDataset(config.prefix_of("text")), summary


def test_documents_are_the_ids_of_the_tokenizers_package_and_the_eod(
    tokenizer, definition, tmp_path
):
    dataset, summary = run(tokenizer, tmp_path, [{"text": text} for text in TEXTS])
    oracle = tokenizers.Tokenizer.from_str(json.dumps(definition))
    oracle.encode_special_tokens = True
    assert [ids.tolist() for ids in dataset] == [[*oracle.encode(text).ids, 0] for text in TEXTS]
    assert dataset.dtype == np.uint16
    assert summary.documents["text"] == len(TEXTS) == dataset.num_documents
    assert summary.tokens["text"] == dataset.num_tokens
    assert summary.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out_text_document.bin",
        "out_text_document.idx",
        "out_text_document.origin.json",
        "out_text_document.sha256",
    ]


def test_the_output_does_not_depend_on_workers_or_chunks(tokenizer, tmp_path):
    rows = [{"text": text} for text in TEXTS]
    rows[10:12] = [{"text": ""}, {"none": 1}]
    contents = set()
    for number, (workers, chunk_size, shuffle) in enumerate(
        itertools.product((1, 3), (None, 7), (False, True))
    ):
        options = {"workers": workers, "chunk_size": chunk_size, "shuffle": shuffle}
        run(tokenizer, tmp_path, rows, f"out{number}", **options)
        files = [tmp_path / f"out{number}_text_document.{suffix}" for suffix in ("bin", "idx")]
        contents.add((shuffle, *(file.read_bytes() for file in files)))
    assert len(contents) == 2  # one in the order of the input, one shuffled


def test_several_inputs_and_keys_keep_their_order(tokenizer, tmp_path):
    first = write_lines(tmp_path / "b.jsonl", [{"code": "a", "doc": "x"}, {"code": "b", "doc": ""}])
    second = write_lines(tmp_path / "a.jsonl", [{"doc": "y", "code": "c"}])
    config = PreprocessConfig(
        input=(first, second), output_prefix=str(tmp_path / "o/p"), json_keys=("code", "doc")
    )
    summary = preprocess(config, tokenizer)
    found = {
        key: [tokenizer.detokenize(ids) for ids in IndexedDataset(tmp_path / f"o/p_{key}_document")]
        for key in ("code", "doc")
    }
    assert found == {"code": ["a", "b", "c"], "doc": ["x", "y"]}
    assert summary.empty == {"code": 0, "doc": 1}


def test_every_record_is_accounted_for(tokenizer, tmp_path, caplog):
    path = tmp_path / "in.jsonl"
    lines = ['{"text": "good"}', "{broken", "", '{"text": ""}', '{"t": 1}', '{"text": 1}', "[]"]
    path.write_text("\n".join(lines * 50))
    config = PreprocessConfig(
        input=(str(path),), output_prefix=str(tmp_path / "out"), chunk_size=20
    )
    with caplog.at_level("WARNING", "megatron"):
        summary = preprocess(config, tokenizer)
    assert (summary.num_read, summary.num_blank) == (350, 50)
    assert summary.documents["text"] == summary.empty["text"] == 50
    assert summary.bad == {
        "not JSON": 50,
        "no key 'text'": 50,
        "key 'text' is not a string": 50,
        "not a JSON object": 50,
    }
    assert "350 records = 50 documents + 50 empty + 200 bad (" in summary.describe("text")
    named = [message for message in caplog.messages if message.startswith("skipped")]
    assert len(named) == NUM_NAMED
    assert named[0] == f"skipped {path}:2: not JSON"


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_stops_at_the_first_bad_record_and_leaves_nothing(tokenizer, tmp_path, workers):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' * 30 + "{broken\n" + '{"text": 1}\n' * 30)
    config = PreprocessConfig(
        input=(str(path),),
        output_prefix=str(tmp_path / "out"),
        strict=True,
        workers=workers,
        chunk_size=4,
    )
    with pytest.raises(DataError, match=r"in\.jsonl:31: not JSON"):
        preprocess(config, tokenizer)
    assert not list(tmp_path.glob("out*"))


def test_input_without_a_document_is_an_error_and_leaves_nothing(tokenizer, tmp_path):
    with pytest.raises(DataError, match="2 records = 0 documents \\+ 1 empty \\+ 1 bad"):
        run(tokenizer, tmp_path, [{"text": ""}, {"content": "wrong key"}])
    assert not list(tmp_path.glob("out*"))


def test_an_interrupted_run_leaves_the_older_output_alone(tokenizer, tmp_path):
    run(tokenizer, tmp_path, [{"text": "old"}])

    def interrupt(num_bytes):
        raise KeyboardInterrupt

    config = PreprocessConfig(
        input=(write_lines(tmp_path / "b.jsonl", [{"text": "new"}] * 50),),
        output_prefix=str(tmp_path / "out"),
        workers=2,
        chunk_size=5,
    )
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, tokenizer, on_read=interrupt)
    names = sorted(path.name for path in tmp_path.glob("out*"))
    assert names == [
        f"out_text_document.{suffix}" for suffix in ("bin", "idx", "origin.json", "sha256")
    ]
    assert tokenizer.detokenize(IndexedDataset(tmp_path / "out_text_document")[0][:-1]) == "old"


def shuffled_order(count, seed):
    """Documents sorted by 64 random bits each."""
    word = keyed_word(seed, "shuffle documents")
    return sorted(range(count), key=lambda number: random_word(word, number))


def test_shuffling_is_the_order_of_the_seed(tokenizer, tmp_path):
    rows = [{"text": f"document {i} " + "x" * i} for i in range(100)]
    plain, _ = run(tokenizer, tmp_path, rows, "plain")
    shuffled, _ = run(tokenizer, tmp_path, rows, "shuffled", shuffle=True, seed=7)
    other, _ = run(tokenizer, tmp_path, rows, "other", shuffle=True, seed=8)
    order = shuffled_order(100, 7)
    assert [ids.tolist() for ids in shuffled] == [plain[order[i]].tolist() for i in range(100)]
    assert sorted(map(bytes, shuffled)) == sorted(map(bytes, plain)) == sorted(map(bytes, other))
    assert list(map(bytes, shuffled)) != list(map(bytes, other)) != list(map(bytes, plain))


def provenance_of(prefix):
    """(text without its end, fields) of every document is checked through this: the rows in order."""
    dataset = IndexedDataset(prefix)
    provenance = Provenance.open(prefix, num_documents=dataset.num_documents)
    return [provenance.row(number) for number in range(dataset.num_documents)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_document_keeps_what_its_record_says_of_it(tokenizer, tmp_path, shuffle):
    rows = [
        {"text": f"text {i}" if i % 5 else "", "doc": f"doc {i}" if i % 3 else "", "path": f"p{i}"}
        for i in range(60)
    ]
    rows[7] |= {"stars": 4}
    rows[8]["path"] = None
    source = write_lines(tmp_path / "in.jsonl", [*rows, {"path": "of a bad record"}])
    config = PreprocessConfig(
        input=(source,),
        output_prefix=str(tmp_path / "out"),
        json_keys=("text", "doc"),
        provenance_keys=("path", "stars"),
        shuffle=shuffle,
        workers=2,
        chunk_size=7,
    )
    summary = preprocess(config, tokenizer)
    for key in ("text", "doc"):
        dataset = IndexedDataset(config.prefix_of(key))
        texts = [tokenizer.detokenize(ids) for ids in dataset]
        kept = [row for row in rows if row[key]]
        if shuffle:
            kept = [kept[i] for i in shuffled_order(len(kept), config.order_seed)]
        assert texts == [row[key] for row in kept]
        assert provenance_of(config.prefix_of(key)) == [
            {"path": row["path"], "stars": "4" if "stars" in row else None} for row in kept
        ]
        assert summary.documents[key] + summary.empty[key] + summary.bad.total() == 61


def test_a_field_that_no_record_has_is_said(tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING", "megatron"):
        run(tokenizer, tmp_path, [{"text": "a", "repo": "r"}], provenance_keys=("repo", "licence"))
    assert [message for message in caplog.messages if "licence" in message] == [
        "no record has a value for --provenance-keys licence; is it spelled as in the input?"
    ]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])
def test_bad_records_of_a_shard_are_named_by_their_place_in_the_file(
    tokenizer, tmp_path, caplog, name
):
    rows = [{"text": None if i % 10 == 3 else f"text {i}"} for i in range(100)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name == "in.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=9)
    else:
        (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    named, counts = [], []
    for number in range(1, 8):
        config = PreprocessConfig(
            input=(str(tmp_path / name),),
            output_prefix=str(tmp_path / "out"),
            shard=f"{number}/7",
            workers=2,
        )
        with caplog.at_level("WARNING", "megatron"):
            summary = preprocess(config, tokenizer)
        named += [int(m.split(":")[1]) for m in caplog.messages if m.startswith("skipped")]
        caplog.clear()
        counts.append(summary.num_read)
    # Of a compressed file one shard has all, and names the first five.
    expected = [4 + 10 * i for i in range(10)]
    assert named == (expected[:NUM_NAMED] if name.endswith("gz") else expected)
    assert sum(counts) == 100


def test_a_strict_shard_stops_at_the_line_of_the_file(tokenizer, tmp_path):
    lines = ['{"text": "good"}'] * 90
    lines[80] = "{cut"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    config = PreprocessConfig(
        input=(str(tmp_path / "in.jsonl"),),
        output_prefix=str(tmp_path / "out"),
        shard="3/3",
        strict=True,
    )
    with pytest.raises(DataError, match=r"in\.jsonl:81: not JSON;"):
        preprocess(config, tokenizer)
    assert not list(tmp_path.glob("out*"))


def test_ugly_lines_are_each_accounted_for_with_any_workers(tokenizer, tmp_path):
    draw = random.Random(5)
    good = [json.dumps({"text": f"line {i} \u00e9\0"}).encode() for i in range(5)]
    ugly = [b"", b"  \r", b"\0", b'{"text": "\xff"}', b'{"text": ""}', b'{"text": 1}', b"[1]", b"{"]
    lines = [draw.choice([*good, *ugly]) for _ in range(3000)]
    lines.append(b'{"text": "cut in the midd')
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    for options in ({"workers": 1}, {"workers": 3, "chunk_size": 11}):
        config = PreprocessConfig(
            input=(str(path),), output_prefix=str(tmp_path / "out"), **options
        )
        summary = preprocess(config, tokenizer)
        count = {line: lines.count(line) for line in set(lines)}
        assert summary.num_read == len(lines) == 3001
        assert summary.documents["text"] == sum(count[line] for line in good)
        assert summary.empty["text"] == count[b'{"text": ""}']
        assert summary.num_blank == count[b""] + count[b"  \r"]
        assert summary.bad == {
            "not JSON": count[b"\0"] + count[b"{"],
            "not UTF-8": count[b'{"text": "\xff"}'],
            "key 'text' is not a string": count[b'{"text": 1}'],
            "not a JSON object": count[b"[1]"],
            "not JSON, and the file ends in it": 1,
        }


def test_a_document_longer_than_any_chunk_is_one_document(tokenizer, tmp_path):
    long = " ".join(TEXTS) * 70
    assert len(long) > 2 * CHUNK_BYTES
    dataset, _ = run(tokenizer, tmp_path, [{"text": "a"}, {"text": long}, {"text": "b"}])
    assert [tokenizer.detokenize(ids[:-1]) for ids in dataset] == ["a", long, "b"]


def test_memory_does_not_grow_with_the_input(tokenizer, tmp_path):
    """After 3 MB, 44 MB more take no more memory, in this process or in a worker, shuffled or not."""
    row = json.dumps({"text": "\n".join(TEXTS)[:20_000], "path": "a/b"}) + "\n"
    script = """
import json, re, resource, sys
from pathlib import Path
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.preprocessing.shuffle import DocumentShuffler
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer
# The bounds are hundreds of megabytes: small ones, that the small input passes too.
DocumentShuffler.__init__.__kwdefaults__.update(gathered_bytes=1 << 18, sorted_bytes=1 << 19)
folder = sys.argv[1]
tokenizer = build_tokenizer(TokenizerConfig(tokenizer_file=folder + "/tokenizer.json"))
for shuffled in (False, True):
    for name in ("small.jsonl", "large.jsonl"):
        preprocess(
            PreprocessConfig(
                input=(f"{folder}/{name}",), output_prefix=folder + "/o", workers=2, append_eod=True,
                provenance_keys=("path",), shuffle=shuffled
            ),
            tokenizer,
        )
        # Of itself, getrusage counts what the process was before it became this program.
        peak = int(re.search(r"VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1])
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(json.dumps([peak / 1024, workers / 1024]))
"""
    (tmp_path / "small.jsonl").write_text(row * 150)
    (tmp_path / "large.jsonl").write_text(row * 2350)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    small, large, small_shuffled, large_shuffled = map(json.loads, result.stdout.splitlines())
    for before, after in [(small, large), (small_shuffled, large_shuffled)]:
        grown = max(b - a for a, b in zip(before, after, strict=True))
        assert grown < 25, (
            result.stdout
        )  # some 5, by how threads share memory; all of it would be 44 and more


def test_outputs_of_several_keys_are_published_together(tokenizer, tmp_path, monkeypatch):
    def complete(self):
        if "doc_document" in self.builder.prefix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DatasetWriter, "complete", complete)
    with pytest.raises(DataError, match="No space left on device; the output is not complete"):
        run(tokenizer, tmp_path, [{"text": "a", "doc": "b"}], json_keys=("text", "doc"))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_disk_that_fails_while_it_is_read_is_an_error_and_leaves_nothing(
    tokenizer, tmp_path, monkeypatch, num_workers
):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(document_reader, "_line_start", fail)
    with pytest.raises(DataError, match=r"in\.jsonl cannot be read: Input/output error"):
        run(tokenizer, tmp_path, [{"text": "a"}], workers=num_workers)
    assert not list(tmp_path.glob("out*"))


def test_sentences_are_items_and_documents_keep_theirs(tokenizer, tmp_path):
    rows = [
        {"text": "First one. Second here! Third?"},
        {"text": "Alone."},
        {"text": "It ends. It goes on."},
    ]
    sentences = ["First one.", "Second here!", "Third?", "Alone.", "It ends.", "It goes on."]
    for shuffle in (False, True):
        source = write_lines(tmp_path / "in.jsonl", rows)
        config = PreprocessConfig(
            input=(source,),
            output_prefix=str(tmp_path / f"out{shuffle}"),
            append_eod=True,
            split_sentences=True,
            shuffle=shuffle,
        )
        preprocess(config, tokenizer)
        dataset = IndexedDataset(tmp_path / f"out{shuffle}_text_sentence")
        dataset.verify()
        texts = [tokenizer.detokenize(ids) for ids in dataset]
        documents = [texts[begin:end] for begin, end in itertools.pairwise(dataset.document_items)]
        expected = [
            [*sentences[:2], "Third?<|endoftext|>"],
            ["Alone.<|endoftext|>"],
            ["It ends.", "It goes on.<|endoftext|>"],
        ]
        if shuffle:
            order = shuffled_order(3, config.seed)
            expected = [expected[order[i]] for i in range(3)]
        assert documents == expected


def test_a_large_vocabulary_is_written_in_four_bytes(tmp_path):
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=100_000))
    dataset, _ = run(tokenizer, tmp_path, [{"text": "99999 7"}, {"text": "1"}])
    assert dataset.dtype == np.int32
    assert [ids.tolist() for ids in dataset] == [[99_999, 7, 100_000], [1, 100_000]]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_tokenizer_is_one_of_the_user(tmp_path, workers):
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=10))
    with pytest.raises(DataError, match="numbers and spaces only"):
        run(tokenizer, tmp_path, [{"text": "not a number"}], workers=workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_prefix": "x"}, "no --input"),
        ({"input": ("a.jsonl",)}, "no --output-prefix"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "workers": 0}, "--workers is 0"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "chunk_size": 0}, "--chunk-size is 0"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "json_keys": ("a", "a")}, "twice"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "shard": "0/4"}, "--shard is '0/4'"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "seed": 7}, "--seed 7 is of --shuffle"),
        ({"input": ("a.jsonl",), "output_prefix": "x", "lang": "german"}, "of --split-sentences"),
        (
            {"input": ("a.jsonl",), "output_prefix": "x", "provenance_keys": ("document",)},
            "'document' cannot be a provenance field",
        ),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PreprocessConfig(**options).check()
