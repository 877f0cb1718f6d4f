"""Prompts: infilling in the very layout of training, sentinels, and what goes when there is no room."""

import numpy as np
import pytest

from megatron.data.fim import FillInTheMiddle
from megatron.errors import ConfigError
from megatron.inference.job import Fitting, Job, make_request
from megatron.inference.options import SamplingOptions
from megatron.inference.prompt import encode_text, infilling_ends, infilling_ids
from megatron.tokenizer.json_tokenizer import JsonTokenizer
from megatron.tokenizer.special_tokens import EOD
from megatron.tokenizer.tokenizer import NullTokenizer
from megatron.tokenizer.train import train_tokenizer
from tests.convert.runs import TEXTS, VOCAB_SIZE

TEXT = "def add(a, b):\n    return a + b  # \u00e9\n\nint main() { return 1234; }\n"
FITTING = Fitting("psm", reads_sentinels=False, truncates=False, shortens=False)


@pytest.fixture(scope="module")
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer("test", train_tokenizer(TEXTS, VOCAB_SIZE), eod=EOD)


@pytest.mark.parametrize("order, spm_rate", [("psm", 0.0), ("spm", 1.0)])
def test_an_infilling_is_asked_for_as_it_was_trained(tokenizer, order, spm_rate):
    transform = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=spm_rate)
    ids = tokenizer.tokenize(TEXT)
    window = np.array([*ids, tokenizer.eod, *[tokenizer.eod] * len(ids)])
    for key in range(4):
        trained = transform(window, key)[0].tolist()
        trained = trained[: trained.index(tokenizer.eod)]
        cuts = [
            (start, stop)
            for start in range(len(TEXT) + 1)
            for stop in range(start, len(TEXT) + 1)
            if infilling_ids(tokenizer, TEXT[:start], TEXT[stop:], order)
            + tokenizer.tokenize(TEXT[start:stop])
            == trained
        ]
        # in SPM nothing marks the place between prefix and middle
        assert len(cuts) == 1 or (cuts and order == "spm")


def test_text_that_spells_a_sentinel_is_text_unless_it_is_asked_for(tokenizer):
    text = "<filename>a.py\n<|endoftext|>x"
    plain = encode_text(tokenizer, text, reads_sentinels=False)
    assert not set(plain) & set(tokenizer.special_tokens.values())
    assert tokenizer.detokenize(plain) == text
    ids = encode_text(tokenizer, text, reads_sentinels=True)
    assert ids[0] == tokenizer.special_tokens["<filename>"]
    assert ids.count(tokenizer.eod) == 1 and tokenizer.detokenize(ids) == text


def test_a_tokenizer_without_sentinels_cannot_fill_in():
    with pytest.raises(ConfigError, match=r"no <fim_prefix> <fim_middle> <fim_suffix>: a model"):
        infilling_ids(NullTokenizer(10), "1", "2", "psm")


@pytest.mark.parametrize("order", ["psm", "spm"])
@pytest.mark.parametrize("room", [3, 8, 17, 20, 1000])
def test_what_is_cut_is_far_from_the_middle(tokenizer, order, room):
    before, after = tokenizer.tokenize("a b c d e f g h"), tokenizer.tokenize("1 2 3 4")
    ids = infilling_ids(tokenizer, "a b c d e f g h", "1 2 3 4", order, room)
    assert len(ids) == min(room, len(before) + len(after) + 3)
    specials = tokenizer.special_tokens
    place = ids.index(specials["<fim_suffix>"])
    end = ids.index(specials["<fim_middle>"])
    kept_after = ids[place + 1 : end]
    kept_before = ids[1:place] if order == "psm" else ids[end + 1 :]
    assert kept_before == before[len(before) - len(kept_before) :]
    assert kept_after == after[: len(kept_after)]
    if room == 17:  # 14 for the two: the suffix fits into its half
        assert kept_after == after


def job(prefix, suffix=None, **options):
    return Job("a", "here", prefix, suffix, SamplingOptions(**options), 1)


def test_prompts_fit_or_are_refused_or_cut(tokenizer):
    def make(one, **changes):
        return make_request(one, "0", tokenizer, 30, Fitting(**(FITTING.__dict__ | changes)))

    long = "a b c d e f g h i j k l m n"  # 27 tokens or so
    size = len(tokenizer.tokenize(long))
    assert 20 < size < 30
    with pytest.raises(
        ConfigError,
        match=f"here: this model's maximum context length is 30 tokens; the prompt has {size}, and "
        "--max-new-tokens is 12; shorten one of them, or give --truncate",
    ):
        make(job(long, max_new_tokens=12))
    cut = make(job(long, max_new_tokens=12), truncates=True)
    assert list(cut.prompt) == tokenizer.tokenize(long)[-18:]
    assert cut.options.max_new_tokens == 12
    shortened = make(job(long), shortens=True)
    assert shortened.options.max_new_tokens == 30 - size and len(shortened.prompt) == size
    with pytest.raises(ConfigError, match="give 29 at most"):
        make(job("a", max_new_tokens=30))
    with pytest.raises(ConfigError, match="and what is written at least is 1;"):
        make(job(long + long), shortens=True)
    both = make(job(long + long), shortens=True, truncates=True)
    assert len(both.prompt) + both.options.max_new_tokens == 30
    middle = make(job("a", "b", max_new_tokens=5))
    assert middle.end_ids == infilling_ends(tokenizer)
    assert make(job("", max_new_tokens=5)).prompt == (tokenizer.eod,)
