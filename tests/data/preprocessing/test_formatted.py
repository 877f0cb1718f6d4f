"""From `curate.py format` to token files: its sentinels become their ids, and nothing else does, whatever it spells."""

import json

import pytest
import tokenizers

from megatron.curation.blend import MixConfig
from megatron.curation.formats.stage import FormatConfig, format_stage
from megatron.curation.mix import mix
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.origin import read_origin
from megatron.data.preprocessing.formatted import FORMAT_TOKENS, why_not_formatted
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.provenance import Provenance
from megatron.errors import ConfigError
from megatron.options import TokenizerConfig
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.tokenizer.train import train_tokenizer

# Text that spells every sentinel, and what a neutralised one would look like.
HOSTILE = " ".join(STARCODER_SPECIAL_TOKENS) + "\nvector<filename> v; < filename> <|endoftext|>"
EVENTS = [{"author": "ann", "text": f"é {HOSTILE}", "title": "T"}, {"author": "bob", "text": "so"}]
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": "Means"},
        {"cell_type": "code", "source": f"'{HOSTILE}'", "outputs": []},
    ],
    "metadata": {"language_info": {"name": "python"}},
}
RECORDS = [
    {"id": "code", "text": f"# {HOSTILE} é\n", "path": "<reponame>é", "repo": "a/b", "stars": 3},
    {"id": "plain", "text": HOSTILE},
    {"id": "empty", "text": "\n", "sentinels": [0]},
    {"id": "forged", "text": "<filename>x\n", "sentinels": [0]},
    {"id": "issue", "text": "t", "events": EVENTS},
    {"id": "commit", "text": HOSTILE, "old_contents": "é\n", "subject": "Spell all of them"},
    {"id": "notebook", "text": json.dumps(NOTEBOOK), "path": "a.ipynb"},
]


@pytest.fixture(scope="module")
def definition():
    return train_tokenizer([HOSTILE, "def x(filename): return gh_stars"] * 3, 400)


@pytest.fixture
def tokenizer(definition, tmp_path):
    return built(definition, tmp_path)


def built(definition, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))


def curated(tmp_path, kind="jsonl.zst", records=RECORDS):
    """Give the files that `curate.py format` writes."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = RunOptions((str(source),), str(tmp_path / "formatted"), format=kind)
    config = FormatConfig(prefix_rate=1.0, all_commits=True, notebooks="structured")
    run_steps([format_stage(config)], options)
    return tuple(str(path) for path in sorted((tmp_path / "formatted").glob(f"0*.{kind}")))


def expected_ids(definition, *parts):
    """Encode parts with `tokenizers` alone: sentinels by marks that no text holds, added to it as special tokens.

    The tokenizer that does it does not know the sentinels, so text that spells one is text to it.
    """
    package = tokenizers.Tokenizer.from_str(json.dumps(definition | {"added_tokens": []}))
    marks = {token: f"\ue000{number}\ue001" for number, token in enumerate(FORMAT_TOKENS)}
    package.add_special_tokens(list(marks.values()))
    ids = {package.token_to_id(mark): definition["model"]["vocab"][t] for t, mark in marks.items()}
    text = "".join(marks[part[0]] if isinstance(part, tuple) else part for part in parts)
    return [ids.get(number, number) for number in package.encode(text).ids]


def expected(definition):
    """State what each of RECORDS becomes; a tuple is a sentinel."""
    repo, filename, stars = ("<reponame>",), ("<filename>",), ("<gh_stars>",)
    before, message, after = ("<commit_before>",), ("<commit_msg>",), ("<commit_after>",)
    start, text, code = ("<jupyter_start>",), ("<jupyter_text>",), ("<jupyter_code>",)
    comment = f"Title: T\nusername_0: é {HOSTILE}", ("<issue_comment>",), "username_1: so"
    documents = [
        (repo, "a/b", filename, "<reponame>é", stars, f"1-10\n# {HOSTILE} é\n"),
        (HOSTILE,),
        ("\n",),
        ("<filename>x\n",),
        (("<issue_start>",), *comment),
        (before, "é\n", message, "Spell all of them", after, HOSTILE),
        (start, text, "Means", code, f"'{HOSTILE}'", ("<jupyter_output>",), ("<empty_output>",)),
    ]
    return [[*expected_ids(definition, *parts), 0] for parts in documents]


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_sentinels_of_format_become_ids_and_no_other_text_does(
    tokenizer, definition, tmp_path, kind, workers
):
    config = PreprocessConfig(
        input=curated(tmp_path, kind),
        output_prefix=str(tmp_path / "out"),
        provenance_keys=("id",),
        formatted=True,
        append_eod=True,
        workers=workers,
    )
    summary = preprocess(config, tokenizer)
    dataset = IndexedDataset(config.prefix_of("text"))
    assert [ids.tolist() for ids in dataset] == expected(definition)
    assert summary.tokens["text"] == sum(map(len, expected(definition)))
    provenance = Provenance.open(config.prefix_of("text"), num_documents=len(RECORDS))
    assert [provenance.row(n)["id"] for n in range(len(RECORDS))] == [r["id"] for r in RECORDS]
    assert read_origin(config.prefix_of("text"))["formatted"] is True


def test_mix_counts_the_tokens_that_preprocessing_writes(tokenizer, definition, tmp_path):
    options = RunOptions(curated(tmp_path), str(tmp_path / "mixed"))
    counted = mix(options, MixConfig(formatted=True), tokenizer).groups()
    assert counted["unknown"].tokens == sum(map(len, expected(definition)))


def test_without_the_flag_sentinels_are_text_and_that_is_said_once(tokenizer, tmp_path, caplog):
    config = PreprocessConfig(
        input=curated(tmp_path), output_prefix=str(tmp_path / "out"), chunk_size=1
    )
    with caplog.at_level("WARNING", "megatron"):
        preprocess(config, tokenizer)
    assert len([line for line in caplog.messages if "without --formatted" in line]) == 1
    specials = set(tokenizer.special_tokens.values())
    assert not any(specials & set(ids.tolist()) for ids in IndexedDataset(config.prefix_of("text")))
    assert "formatted" not in read_origin(config.prefix_of("text"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_text_that_was_changed_behind_format_is_a_bad_record(tokenizer, tmp_path, kind):
    records = [{"id": "1", "text": "a <filename>b"}]
    raw = tmp_path / "raw.jsonl"
    raw.write_text(json.dumps(records[0]) + "\n")
    files = (*curated(tmp_path, kind, records), str(raw))
    config = PreprocessConfig(input=files, output_prefix=str(tmp_path / "out"), formatted=True)
    assert preprocess(config, tokenizer).bad == {why_not_formatted("", None): 1}


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("<filename>", [1]), ("é<filename>", [1]), ("<filename>", [-10]), ("<filename>", [99]), ("a", [0]),
        ("<|endoftext|>", [0]), ("<fim_prefix>", [0]), ("<filename>", [0, 0]), ("<filename>", [0.0]),
        ("<filename>", [False]), ("<filename>", "0"), ("<filename>", {"0": 1}), ("<filename>", ["0"]),
    ],
)  # fmt: skip
def test_places_that_format_cannot_have_written_are_refused(text, places):
    assert why_not_formatted(text, places)
    assert why_not_formatted("é<filename><filename>", [2, 12]) is None


def test_a_tokenizer_that_lacks_sentinels_is_named_with_them(definition, tmp_path):
    lacking = dict(definition, added_tokens=[t for t in definition["added_tokens"] if t["content"] != "<gh_stars>"])  # fmt: skip
    config = PreprocessConfig(
        input=curated(tmp_path), output_prefix=str(tmp_path / "out"), formatted=True
    )
    with pytest.raises(ConfigError, match="has no <gh_stars>; train one"):
        preprocess(config, built(lacking, tmp_path))
    assert not list(tmp_path.glob("out*"))


def test_what_cannot_be_combined_is_an_error():
    for more in ({"json_keys": ("text", "doc")}, {"split_sentences": True}):
        with pytest.raises(ConfigError, match="--formatted says where"):
            PreprocessConfig(input=("a.jsonl",), output_prefix="b", formatted=True, **more).check()
