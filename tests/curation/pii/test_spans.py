"""Spans are read from records, become labels of tokens, and come back from what a model says of each token."""

import json

import numpy as np
import pytest

from megatron.curation.pii.spans import Score, Span, annotated, scores, spans_of, token_tags
from megatron.curation.run.document import Document
from megatron.errors import DataError


def test_spans_match_if_they_overlap_by_four_fifths_both_ways_and_each_once():
    truth = [Span(0, 10, "NAME"), Span(20, 30, "KEY")]
    found = [Span(0, 9, "NAME"), Span(0, 10, "NAME"), Span(20, 40, "KEY"), Span(50, 60, "OTHER")]
    best = scores([(found, truth), ([], [Span(0, 4, "OTHER")])], ("NAME", "KEY"))
    assert best == {"NAME": Score(1, 2, 1), "KEY": Score(0, 1, 1), "all": Score(1, 3, 2)}
    assert best["all"].f1 == pytest.approx(0.4)
    assert Score().f1 == Score().precision == Score().recall == 0.0


def test_spans_become_labels_of_tokens_and_words_of_one_line_become_spans():
    text = "by Ann Lee\nBob x@y"
    offsets = np.array([(0, 2), (3, 5), (5, 6), (7, 10), (11, 14), (15, 16), (16, 17), (17, 18)])
    spans = [Span(3, 10, "NAME"), Span(11, 14, "NAME"), Span(15, 18, "AMBIGUOUS")]
    tags = token_tags(offsets, spans, ("NAME",))
    assert tags.tolist() == [0, 1, 2, 2, 1, -100, -100, -100]
    probabilities = np.eye(3, dtype=np.float32)[np.maximum(tags, 0)]
    probabilities[1] = [0.6, 0.2, 0.2]  # one unsure token does not cut a word
    assert spans_of(text, offsets, probabilities, {"NAME": [1, 2]}, 0.5) == spans[:2]
    assert spans_of(text, offsets, probabilities, {"KEY": [1, 2]}, 0.5) == [
        Span(3, 6, "KEY"),
        Span(7, 10, "KEY"),
        Span(11, 14, "KEY"),
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {"spans": [{"start": 3, "end": 6, "label": "NAME"}]},
        {"fragments": [{"position": [3, 6], "category": "NAME", "value": "Ann"}]},
        {"pii": json.dumps([{"start": 3, "end": 6, "tag": "NAME", "value": "Ann"}])},
    ],
)
def test_spans_are_read_under_the_names_of_bigcodes_data(metadata):
    assert annotated(Document("1", "by Ann", metadata)).spans == (Span(3, 6, "NAME"),)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"spans": 3},
        {"spans": [{"start": 3}]},
        {"spans": [{"start": 3, "end": 9, "label": "X"}]},
    ],
)
def test_records_without_readable_spans_are_named(metadata):
    with pytest.raises(DataError, match="record r7"):
        annotated(Document("r7", "by Ann", metadata))
