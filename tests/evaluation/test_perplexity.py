"""Perplexity against a model that is a formula."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest

from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.errors import ConfigError
from megatron.evaluation.perplexity import add_arguments, plan_of, to_markdown

EOD = 0


class Bytes:
    """A tokenizer whose ids are bytes and one."""

    eod = EOD
    vocab_size = 257

    def tokenize(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == EOD else bytes([token - 1])


def by_context(ids: list[int]) -> np.ndarray:
    """A token's probability is 2 to the minus the number of tokens before it, and less for the end of text."""
    return -math.log(2) * np.arange(1, len(ids))


def plan(*flags: object, positions: int = 8):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan_of(parser.parse_args([str(flag) for flag in flags]), positions, Bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("abcdé")  # 6 bytes
    (tmp_path / "b.py").write_text("xyz")
    (tmp_path / "c.js").write_text("12345678")
    (tmp_path / "d.bin").write_text("no source")
    return tmp_path


def test_every_token_is_scored_once_for_each_length(folder: Path) -> None:
    found = plan("--folder", folder, "--context-lengths", 2, 4)
    assert found.num_scores == 2 * (6 + 3 + 8)
    report = found.run(by_context, lambda count: None)
    assert report["groups"]["py"]["2"]["num_tokens"] == 9
    # windows of 2: (1 + 2) bits each; of 6 tokens three windows, of 3 one and a token
    assert report["groups"]["py"]["2"]["log_probability"] == pytest.approx(-13 * math.log(2))
    # of 4: 1 + 2 + 3 + 4 and 1 + 2; 1 + 2 + 3
    assert report["groups"]["py"]["4"]["log_probability"] == pytest.approx(-19 * math.log(2))
    assert report["groups"]["py"]["4"]["bits_per_byte"] == pytest.approx(19 / 9)
    assert report["groups"]["js"]["4"]["perplexity"] == pytest.approx(2 ** (20 / 8))
    assert report["all"]["4"]["num_bytes"] == 17
    assert report["all"]["4"]["log_probability"] == pytest.approx(-39 * math.log(2))
    # by position: tokens with 0 or 1 before them in their window, with 2 or 3
    rows = report["by_position"]
    assert (rows["0"]["num_tokens"], rows["2"]["num_tokens"]) == (10, 7)
    assert rows["2"]["log_probability"] == pytest.approx(-24 * math.log(2))
    assert "| 2 to 3 | 7 |" in to_markdown(report | {"model": "none", "iteration": 5})


def test_texts_begin_after_an_end_of_text_and_are_cut(folder: Path) -> None:
    seen = []

    def score(ids: list[int]) -> np.ndarray:
        seen.append(ids)
        return np.zeros(len(ids) - 1)

    found = plan("--folder", folder, "--only", "js", "--num-tokens", 5, "--context-lengths", 4)
    found.run(score, lambda count: None)
    text = Bytes().tokenize("12345")
    assert seen == [[EOD, *text[:4]], text[3:]]


def test_files_can_be_one_long_text(folder: Path) -> None:
    (text,) = plan("--folder", folder, "--only", "py", "--concatenate").texts
    assert text.ids == [*Bytes().tokenize("abcdé"), EOD, *Bytes().tokenize("xyz")]


def test_short_texts_are_left_out(folder: Path) -> None:
    found = plan("--folder", folder, "--min-tokens", 6)
    assert sorted(len(text.ids) for text in found.texts) == [6, 8]


def test_datasets_give_their_documents(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "set", np.dtype("<u2")) as builder:
        for document in ([5, 6, EOD], [7, EOD]):
            builder.add_document(document)
        builder.finalize()
    found = plan("--data-prefix", f"mine={tmp_path / 'set'}")
    assert [(text.group, text.ids) for text in found.texts] == [("mine", [5, 6]), ("mine", [7])]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--context-lengths", 4, 16], "allowed are 1 to the model's 8 positions"),
        (["--num-tokens", 0], "--num-tokens is 0"),
        (["--min-tokens", 99], "holds no text of 99 tokens"),
        (["--only", "rs"], "holds no text"),
    ],
)
def test_mistakes_are_named(folder: Path, flags: list, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan("--folder", folder, *flags)
