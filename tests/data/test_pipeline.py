"""From JSON lines to samples and back: what the model reads, undone, is the text of the files, byte for byte."""

import json
import random

import numpy as np
import pytest
import tokenizers

from megatron.data.build import build_datasets
from megatron.data.loader import BatchLoader
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.trace import Tracer
from megatron.options import DataConfig

SEQ_LENGTH = 256
EOD, PREFIX, MIDDLE, SUFFIX, PAD = 0, 1, 2, 3, 4
UGLY = [
    "",
    "\ufeffa\r\nb\x00\x7f\t\t  \n",
    "日本語、漢字と仮名。🙂👩‍👩‍👧‍👦 e\u0301 ﬁ\u2028 " * 6,
    "<fim_prefix>a<fim_suffix>b<fim_middle><|endoftext|><fim_pad>",
    "0123456789" * 30,
    " " * 300,
]


@pytest.fixture(scope="module")
def corpus(source_texts, tokenizer, tmp_path_factory):
    """Two token files of real and ugly text, shuffled, with the texts by the name their provenance gives."""
    folder = tmp_path_factory.mktemp("pipeline")
    draw = random.Random(5)
    texts, prefixes = {}, []
    for source in ("a", "b"):
        rows = []
        for number in range(150):
            whole = draw.choice(source_texts)
            start = draw.randrange(len(whole))
            text = draw.choice([*UGLY, *[whole[start : start + draw.choice([20, 300, 3000])]] * 12])
            rows.append({"content": text, "name": f"{source}{number}"})
            texts[f"{source}{number}"] = text
        path = folder / f"{source}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = PreprocessConfig(
            input=(str(path),),
            output_prefix=str(folder / source),
            json_keys=("content",),
            provenance_keys=("name",),
            append_eod=True,
            shuffle=True,
        )
        preprocess(config, tokenizer)
        prefixes.append(config.prefix_of("content"))
    return texts, prefixes


def build(tokenizer, prefixes, **options):
    paths = ("2", prefixes[0], "1", prefixes[1])
    config = DataConfig(seq_length=SEQ_LENGTH, train_data_path=paths, **options)
    return build_datasets(config, tokenizer, seed=7).train


def undo(ids):
    """Put a document that is in PSM or SPM order back into the order of its text."""
    if PREFIX not in ids:
        return ids
    assert [token for token in ids if token in (PREFIX, MIDDLE, SUFFIX)] == [PREFIX, SUFFIX, MIDDLE]
    suffix, middle = ids.index(SUFFIX), ids.index(MIDDLE)
    return ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]


def undo_all(ids):
    documents, start = [], 0
    for end in [place for place, token in enumerate(ids) if token == EOD] + [len(ids)]:
        documents += [*undo(ids[start:end]), EOD]
        start = end + 1
    return documents[:-1]


class Oracle:
    """The bytes of windows from the texts themselves, encoded by the tokenizers package."""

    def __init__(self, texts, tokenizer_file):
        self._package = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        self._package.encode_special_tokens = True
        self._texts = texts
        self._ends = {}

    def span(self, name, first, stop):
        """Bytes of tokens first to stop of a document; its end is shown as a byte that is in no UTF-8."""
        if name not in self._ends:
            # The alphabet of byte-level BPE has one character a byte.
            encoded = self._package.encode(self._texts[name])
            self._ends[name] = [0, *np.cumsum([len(token) for token in encoded.tokens]).tolist()]
        ends = self._ends[name]
        content = self._texts[name].encode()
        assert ends[-1] == len(content)
        end_of_document = b"\xff" if stop == len(ends) else b""
        return content[ends[first] : ends[min(stop, len(ends) - 1)]] + end_of_document


def test_samples_undone_are_the_texts_byte_for_byte_up_to_where_they_end(
    tokenizer, tokenizer_file, corpus
):
    texts, prefixes = corpus
    dataset = build(tokenizer, prefixes, fim_rate=0.7)
    tracer, oracle = Tracer(dataset), Oracle(texts, tokenizer_file)
    num_whole = num_transformed = 0
    lost = []
    for index in range(2 * dataset.datasets[0].samples_per_epoch):
        sample = dataset[index]
        num_tokens = 1 + int(sample["loss_mask"].sum())
        ids = [*sample["tokens"].tolist(), int(sample["labels"][-1])][:num_tokens]
        assert PAD not in ids
        spelled = [b"\xff" if i == EOD else tokenizer.token_bytes(i) for i in undo_all(ids)]
        given = b"".join(spelled)
        spans = tracer.trace(index).spans
        expected = [
            oracle.span(span.provenance["name"], span.first, span.first + len(span.tokens))
            for span in spans
        ]
        assert b"".join(expected).startswith(given)
        lost.append(1 - len(given) / len(b"".join(expected)))
        num_transformed += PREFIX in ids
        whole = {
            span.provenance["name"]
            for span in spans
            if len(span.tokens) == span.num_document_tokens
        }
        # Of documents that lie in the window whole, the text comes back whole, unless it met the sample's end.
        num_whole += sum(texts[name].encode() + b"\xff" in given for name in whole)
    assert num_whole > 100 and num_transformed > 0.6 * len(lost)
    assert np.mean(lost) < 0.1  # what the sentinels and the parts' own encoding take


def test_workers_ranks_micro_batches_and_a_resume_give_identical_bytes(tokenizer, corpus):
    """One process without workers, against 1 and 4 workers and 2 ranks, stopped and begun again in the middle."""
    dataset = build(tokenizer, corpus[1], fim_rate=0.5)
    expected = BatchLoader(dataset, micro_batch_size=8)
    steps = range(0, 48, 8)
    wanted = {consumed: content(expected.batch(consumed, 8)) for consumed in steps}
    for num_workers, micro_batch_size, dp_size in [(1, 1, 1), (4, 4, 1), (0, 2, 2)]:
        for consumed in steps:
            if consumed in (0, 24):  # a start, and a resume in new processes
                loaders = [
                    BatchLoader(
                        build(tokenizer, corpus[1], fim_rate=0.5),
                        micro_batch_size=micro_batch_size,
                        dp_rank=rank,
                        dp_size=dp_size,
                        num_workers=num_workers,
                    )
                    for rank in range(dp_size)
                ]
            parts = [content(loader.batch(consumed, 8)) for loader in loaders]
            assert (
                dict(sorted({k: v for part in parts for k, v in part.items()}.items()))
                == wanted[consumed]
            )
            if consumed in (16, 40):
                for loader in loaders:
                    loader.close()


def content(batch):
    """The bytes of each sample, by its number."""
    return {
        int(number): b"".join(
            tensor[row].numpy().tobytes()
            for tensor in (batch.tokens, batch.labels, batch.loss_mask)
        )
        for row, number in enumerate(batch.sample_ids)
    }


def test_every_token_of_every_source_comes_exactly_once_an_epoch(tokenizer, corpus):
    """The windows of an epoch overlap in the one token that is only predicted, and leave less than one window."""
    dataset = build(tokenizer, corpus[1])
    seen = [[] for _ in dataset.datasets]
    index = 0
    while (
        min(
            len(windows) - one.samples_per_epoch
            for windows, one in zip(seen, dataset.datasets, strict=True)
        )
        < 0
    ):
        source, within = dataset.locate(index)
        seen[source].append(dataset.datasets[source].window(within))
        index += 1
    for windows, one in zip(seen, dataset.datasets, strict=True):
        epoch = sorted((piece.start, piece.stop) for (piece,) in windows[: one.samples_per_epoch])
        assert [start for start, _ in epoch[1:]] == [stop - 1 for _, stop in epoch[:-1]]
        left_over = one.num_tokens - (epoch[-1][1] - epoch[0][0])
        assert len(epoch) == one.samples_per_epoch and 0 <= left_over < SEQ_LENGTH
