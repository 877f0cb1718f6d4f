"""A classifier of tokens finds names, user names and passwords that rules cannot, and what it finds is replaced safely."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from megatron.benchmark.pii_cases import documents
from megatron.curation.pii.model import accepted, load, windows_of
from megatron.curation.pii.rules import find_all
from megatron.curation.pii.scan import Found
from megatron.curation.pii.spans import (
    Score,
    Span,
    scores,
    tags_of,
)
from megatron.curation.pii.stage import PiiConfig, everywhere, joined, pii_stage, redact
from megatron.curation.pii.train import train
from megatron.curation.pii.train_options import PiiTrainConfig
from megatron.curation.run.document import Changed, Document, Keep
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.errors import ConfigError, DataError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KINDS = ("NAME", "USERNAME", "PASSWORD")
WINDOW = 64


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def spans_in(record):
    return [Span(one["start"], one["end"], one["label"]) for one in record["spans"]]


def make_tokenizer(path, texts):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return str(path)


def settings(tokenizer, **changes):
    small = {
        "tokenizer_file": tokenizer,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "dropout": 0.0,
        "labels": KINDS,
        "window": WINDOW,
        "overlap": 16,
        "train_batch": 16,
        "epochs": 2,
        "learning_rate": 3e-3,
        "warmup": 20,
        "device": "cpu",
    }
    return PiiTrainConfig(**(small | changes))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As a worker has it, so that forks of this process may compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that learned from contexts and values of one half."""
    folder = tmp_path_factory.mktemp("pii")
    records = list(documents(1, 600, half=0, kinds=KINDS))
    tokenizer = make_tokenizer(folder / "tokenizer.json", [one["text"] for one in records])
    options = RunOptions(
        input=(written(folder / "in.jsonl", records),), output=str(folder / "model")
    )
    train(options, settings(tokenizer), on_step=lambda done, total: None)
    return folder / "model"


def classifier(folder, batch_size=16):
    return load(folder, device="cpu", window=WINDOW, overlap=16, batch_size=batch_size, bf16=False)


def stage_of(model, **changes):
    return pii_stage(
        PiiConfig(model=str(model), window=WINDOW, overlap=16, device="cpu", **changes)
    )


def test_values_and_contexts_that_were_never_seen_are_found_and_rules_find_none_of_them(model):
    held_out = list(documents(2, 150, half=1, kinds=KINDS))
    texts = [one["text"] for one in held_out]
    found = classifier(model).spans(texts, 0.5)
    best = scores(zip(found, map(spans_in, held_out), strict=True), KINDS)
    assert best["all"].f1 > 0.85, best
    assert min(best[kind].f1 for kind in KINDS) > 0.75, best
    rules = [[Span(i.begin, i.end, i.kind) for i in find_all(text)] for text in texts]
    assert scores(zip(rules, map(spans_in, held_out), strict=True), KINDS)["all"].f1 < 0.2
    report = json.loads((model / "report.json").read_bytes())
    assert report["complete"]
    assert set(report["scores"]) == {*KINDS, "all"}


def test_finds_depend_neither_on_the_batch_nor_on_the_windows_of_a_long_text(model):
    records = list(documents(3, 30, half=0, kinds=KINDS))
    texts = [one["text"] for one in records]
    alone = [classifier(model, 1).spans([text], 0.5)[0] for text in texts[:5]]
    assert classifier(model, 1).spans(texts, 0.5)[:5] == alone
    assert classifier(model, 32).spans(texts, 0.5)[:5] == alone
    long = "".join(texts)
    begins = np.cumsum([0, *map(len, texts)])
    truth = [
        Span(span.begin + begin, span.end + begin, span.label)
        for begin, one in zip(begins, records, strict=False)
        for span in spans_in(one)
    ]
    found = classifier(model).spans([long], 0.5)
    assert scores([(found[0], truth)], KINDS)["all"].f1 > 0.9


def test_names_and_passwords_are_replaced_and_the_file_parses_and_a_second_time_changes_nothing(
    model,
):
    text = (
        "# Author: Benko Sulves\n"
        "__author__ = 'Benko Sulves'\n"
        "login('root', password='lorda7812!')\n"
        "user = 'jsulves'\n"
        "mail = 'benko.s@sulves.org'\n"
    )
    document = Document("1", text, {"language": "python"})
    stage = stage_of(model)
    answer = stage.apply(document)
    assert isinstance(answer, Changed)
    shown = answer.document.text
    ast.parse(shown)
    assert "Benko" not in shown and "lorda" not in shown
    assert "mail = '<EMAIL>'" in shown and "jsulves" in shown
    assert shown.count("<NAME>") == 2
    assert "name 2" in answer.detail and "email 1" in answer.detail
    again = stage.apply(answer.document)
    assert isinstance(again, Keep), again
    shown = stage_of(model, kinds=("USERNAME",)).apply(document).document.text
    assert "user = '<USERNAME>'" in shown and "Benko" in shown


def test_the_output_does_not_depend_on_workers(model, tmp_path):
    path = written(tmp_path / "in.jsonl", documents(4, 40, half=0, kinds=KINDS))
    outputs = []
    for workers in (1, 2):
        options = RunOptions(
            input=(path,),
            output=str(tmp_path / f"{workers}"),
            workers=workers,
            format="jsonl",
            shard_mb=0.002,
        )
        totals = run_steps([stage_of(model)], options)
        assert totals.num_read == 40
        shards = sorted(Path(options.output).glob("*.jsonl"))
        assert len(shards) > 2
        outputs.append(b"".join(shard.read_bytes() for shard in shards))
    assert outputs[0] == outputs[1]
    assert b"<NAME>" in outputs[0] and b"<PASSWORD>" in outputs[0]


def test_a_stage_with_a_model_can_be_sent_to_another_machine_without_its_weights(model):
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs pip install cloudpickle or ray")
    assert len(cloudpickle.dumps(stage_of(model))) < 20_000


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    records = list(documents(5, 60, half=0, kinds=KINDS))
    tokenizer = make_tokenizer(tmp_path / "tokenizer.json", [one["text"] for one in records])
    path = written(tmp_path / "in.jsonl", records)
    config = settings(tokenizer, hidden_size=16, dropout=0.1, epochs=3, patience=9)

    def run(output, part):
        """Train until a part of the steps is done, and give those that were."""
        steps = []

        def on_step(done, total):
            steps.append(done)
            if done > part * total:
                raise KeyboardInterrupt

        train(RunOptions(input=(path,), output=str(output)), config, on_step=on_step)
        return steps

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(stopped, 0)
    (stopped / ".model").mkdir()  # killed while it first wrote
    for output, part in ((whole, 0.7), (stopped, 0.5), (stopped, 0.7)):
        with pytest.raises(KeyboardInterrupt):
            run(output, part)
    states = [torch.load(one / "training.pt", weights_only=True) for one in (whole, stopped)]
    assert states[0]["epoch"] == 2
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name]), name
    assert 1 not in run(whole, 1)
    assert run(whole, 1) == []  # complete
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "report.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    other = settings(tokenizer, hidden_size=16, epochs=4)
    with pytest.raises(DataError, match="--overwrite"):
        train(
            RunOptions(input=(path,), output=str(tmp_path / "whole")),
            other,
            on_step=lambda done, total: None,
        )


def test_an_encoder_of_bert_with_a_label_that_is_ignored_is_fine_tuned_and_read(tmp_path):
    records = list(documents(6, 20, half=0, kinds=KINDS))
    make_tokenizer(tmp_path / "tokenizer.json", [one["text"] for one in records])
    encoder = tmp_path / "encoder"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), cls_token="<cls>", sep_token="<sep>"
    )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    shape = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    transformers.BertModel(shape).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    config = settings(
        None, encoder=str(encoder), labels=(*KINDS, "AMBIGUOUS"), class_weights="root", epochs=1
    )
    options = RunOptions(
        input=(written(tmp_path / "in.jsonl", records),), output=str(tmp_path / "model")
    )
    best = train(options, config, on_step=lambda done, total: None)
    assert best["AMBIGUOUS"] == Score(0, best["AMBIGUOUS"].found, 0)
    tags = json.loads((tmp_path / "model" / "config.json").read_bytes())["id2label"]
    assert [tags[str(number)] for number in range(len(tags))] == tags_of(config.labels)
    answer = stage_of(tmp_path / "model").apply(Document("1", "x = 1\n" * 100, {}))
    assert isinstance(answer, (Keep, Changed))  # longer than its 40 positions


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("Ann Lee", "NAME", "Ann Lee"),
        ("Ann", "NAME", None),
        ("(Ann Lee),", "NAME", "Ann Lee"),
        ("abc", "PASSWORD", None),
        ("changeme", "PASSWORD", None),
        ("hunter2!", "PASSWORD", "hunter2!"),
        ("x7Kq9Zw2", "KEY", None),
        ("x7Kq9Zw2Rt", "KEY", "x7Kq9Zw2Rt"),
        ("interesting", "KEY", None),
        ("8.8.8.8", "IP_ADDRESS", None),
        ("10.0.0.7", "IP_ADDRESS", None),
        ("1.2.3", "IP_ADDRESS", None),
        ("54.12.33.9", "IP_ADDRESS", "54.12.33.9"),
        ("ann@example.com", "EMAIL", None),
        ("git@github.com", "EMAIL", None),
        ("ann@lee.org", "EMAIL", "ann@lee.org"),
        ("jlee", "USERNAME", "jlee"),
        ("<NAME>", "USERNAME", None),
        ("jlee", "AMBIGUOUS", None),
        ("jlee", "NAME_EXAMPLE", None),
    ],
)
def test_the_papers_rules_behind_a_model_let_pass_what_they_should(text, label, expected):
    found = accepted(text, Span(0, len(text), label))
    assert (found and text[found.begin : found.end]) == expected


def test_where_rules_and_model_meet_the_rules_count():
    rule = Found(10, 20, "KEY", "aws")
    apart, over = Found(0, 5, "NAME", "model"), Found(15, 25, "PASSWORD", "model")
    assert joined([rule], [apart, over]) == [apart, rule]


def test_a_name_that_was_found_once_is_replaced_wherever_it_stands_as_words():
    text = "by Ann Lee; AnnAnn Lee, Ann Lee: jlee jlee"
    found = [Found(3, 10, "NAME", "model"), Found(33, 37, "USERNAME", "model")]
    assert [tuple(item[:3]) for item in everywhere(text, found)] == [
        (3, 10, "NAME"),
        (24, 31, "NAME"),
        (33, 37, "USERNAME"),
    ]


def test_a_name_in_an_identifier_becomes_a_word():
    text = "def load_jlee(): pass\njlee = 1\ns = 'jlee'\n"
    found = [
        Found(i, i + 4, "USERNAME", "model")
        for i in range(len(text))
        if text[i:].startswith("jlee")
    ]
    shown, replaced = redact(text, found, PiiConfig(), "python")
    assert shown == "def load_USERNAME(): pass\nUSERNAME = 1\ns = '<USERNAME>'\n"
    assert len(replaced) == 3


@pytest.mark.parametrize("size", [1, 5, 16, 17, 40, 41, 100])
def test_every_token_has_one_window_that_answers_for_it(size):
    seen = [
        token
        for window in windows_of(0, size, 16, 6)
        for token in range(window.first, window.last)
        if window.begin <= token < window.end
    ]
    assert seen == list(range(size))


def test_folders_and_kinds_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing is downloaded"):
        pii_stage(PiiConfig(model=str(tmp_path / "none")))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="names no labels"):
        pii_stage(PiiConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"id2label": {"0": "O", "1": "B-LOC"}}')
    with pytest.raises(ConfigError, match="finds no personal data"):
        pii_stage(PiiConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match="--model"):
        pii_stage(PiiConfig(kinds=("NAME",)))
    with pytest.raises(ConfigError, match="one of them"):
        PiiTrainConfig().check()
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        PiiTrainConfig(encoder=str(tmp_path / "none")).check()
    with pytest.raises(ConfigError, match="train_tokenizer"):
        PiiTrainConfig(tokenizer_file=str(tmp_path / "none")).check()
