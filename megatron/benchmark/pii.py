"""`bench.py curate --only pii pii-model`: speed of finding personal data, and how much of what was planted is found.

The peer for keys is detect-secrets under the plugins and filters of the original pipeline, on files; what the original
asked of its finds afterwards is left out. Planted values stand in twelve contexts between hard negatives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron.benchmark import peers
from megatron.benchmark.curation import Curation, core_timed, megabytes_of
from megatron.benchmark.measure import Row, Timed, measure
from megatron.benchmark.pii_cases import CONTEXTS, HARD_NEGATIVES, documents, value_of
from megatron.curation.pii.model import Classifier, libraries, load
from megatron.curation.pii.rules import find_all
from megatron.curation.pii.spans import Score, annotated, scores
from megatron.curation.pii.train import train
from megatron.curation.pii.train_options import PiiTrainConfig
from megatron.curation.run.document import Document
from megatron.curation.run.options import RunOptions

_PLUGINS = """Artifactory AWSKey AzureStorageKey Cloudant DiscordBotToken GitHubToken IbmCloudIam IbmCosHmac JwtToken
Mailchimp Npm SendGrid Slack Softlayer Stripe TwilioKey"""
PLUGINS = [f"{name}Detector" for name in _PLUGINS.split()] + [
    "Base64HighEntropyString",
    "HexHighEntropyString",
]
FILTERS = (
    "is_potential_uuid",
    "is_likely_id_string",
    "is_templated_secret",
    "is_sequential_string",
)
NUM_PLANTED = 200  # of a kind in a context
PEER_MEGABYTES = 1.0  # of the documents that the peer is given: it takes two seconds for one
MODEL_KINDS = ("NAME", "USERNAME", "PASSWORD")


def rules(bench: Curation) -> Iterator[Row]:
    """All rules on documents in memory; keys beside the peer; and what is found of what was planted."""
    work = core_timed(lambda: [find_all(text) for text in bench.texts])
    finds = sum(len(find_all(text)) for text in bench.texts)
    note = f"{finds:,} finds"
    yield from measure(
        "pii, rules", "MB/s", bench.megabytes, work, {}, rounds=bench.rounds, note=note
    )
    few: list[str] = []
    while len(few) < len(bench.texts) and megabytes_of(few) < PEER_MEGABYTES:
        few.append(bench.texts[len(few)])
    yield from measure(
        "pii, rules, on a part",
        "MB/s",
        megabytes_of(few),
        core_timed(lambda: [find_all(text) for text in few]),
        _peers(_files(bench.folder / "few", few)),
        rounds=bench.rounds,
        note=_of_keys(map(_our_keys, few), few),
    )
    for kind in ("EMAIL", "IP_ADDRESS", "KEY"):
        yield from _planted(bench, kind)


def _planted(bench: Curation, kind: str) -> Iterator[Row]:
    source = random.Random(7)
    texts, values = zip(
        *(_text_of(source, kind, template) for template, _ in CONTEXTS.values()), strict=True
    )
    mine = [{text[item.begin : item.end] for item in find_all(text)} for text in texts]
    note = _quality(mine, values)
    others: dict[str, Timed] = {}
    if kind == "KEY":
        files = _files(bench.folder / "planted", texts)
        others = _peers(files)
        if others:
            note += f"; theirs {_quality([set(_scan(file)) for file in files], values)}"
    yield from measure(
        f"pii, {len(texts) * NUM_PLANTED:,} {kind} planted",
        "MB/s",
        megabytes_of(texts),
        core_timed(lambda: [find_all(text) for text in texts]),
        others,
        rounds=bench.rounds,
        note=note,
    )


def _text_of(source: random.Random, kind: str, template: str) -> tuple[str, set[str]]:
    """Plant values in one context between hard negatives."""
    negatives = HARD_NEGATIVES.strip().split("\n")
    values = [value_of(source, kind) for _ in range(NUM_PLANTED)]
    lines = [
        template.format(value, value) + negatives[number % len(negatives)] + "\n"
        for number, value in enumerate(values)
    ]
    return "".join(lines), set(values)


def _quality(found: Iterable[set[str]], planted: Iterable[set[str]]) -> str:
    right = num_found = there = 0
    for mine, truth in zip(found, planted, strict=True):
        right += len(mine & truth)
        num_found += len(mine)
        there += len(truth)
    return _in_words(Score(right, num_found, there))


def _in_words(score: Score) -> str:
    return f"recall {score.recall:.3f}, precision {score.precision:.3f}, F1 {score.f1:.3f}"


def _files(folder: Path, texts: Iterable[str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = []
    for number, text in enumerate(texts):
        files.append(folder / f"{number}.txt")
        files[-1].write_text(text, encoding="utf-8", errors="replace")
    return files


def _peers(files: list[Path]) -> dict[str, Timed]:
    if not peers.is_installed("detect_secrets"):
        return {}
    name = f"detect-secrets {peers.version('detect-secrets')}"
    return {name: core_timed(lambda: [_scan(file) for file in files])}


def _scan(file: Path) -> list[str]:
    """Give the values that detect-secrets finds in a file."""
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import transient_settings

    chosen: dict[str, Any] = {
        "plugins_used": [{"name": name} for name in PLUGINS],
        "filters_used": [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in FILTERS],
    }
    secrets = SecretsCollection()
    with transient_settings(chosen):
        secrets.scan_file(str(file))
    return [str(secret.secret_value) for one in secrets.data.values() for secret in one]


def _our_keys(text: str) -> list[str]:
    return [text[item.begin : item.end] for item in find_all(text) if item.kind == "KEY"]


def _of_keys(found: Iterable[list[str]], texts: list[str]) -> str:
    note = f"{sum(map(len, found))} keys in {megabytes_of(texts):.1f} MB"
    if not peers.is_installed("detect_secrets"):
        return f"{note}; detect-secrets is not installed"
    return note


def model(bench: Curation) -> Iterator[Row]:
    """A small model that learns from made-up code, asked about contexts and values that it has not seen; on one core."""
    torch, _ = libraries()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    classifier = _trained(bench.folder / "model")
    held_out = [*documents(2, 400, half=1, kinds=MODEL_KINDS)]
    texts = [str(one["text"]) for one in held_out]
    truth = [annotated(Document("", str(one["text"]), one)).spans for one in held_out]
    best = scores(zip(classifier.spans(texts, 0.5), truth, strict=True), MODEL_KINDS)
    work: Callable[[], object] = lambda: classifier.spans(texts, 0.5)  # noqa: E731
    note = "; ".join(
        f"{kind} {_in_words(best[kind])} of {best[kind].there}" for kind in MODEL_KINDS
    )
    yield from measure(
        "pii, a model of 0.15 M",
        "MB/s",
        megabytes_of(texts),
        core_timed(work),
        {},
        rounds=bench.rounds,
        note=note,
    )
    torch.set_num_threads(threads)


def _trained(folder: Path) -> Classifier:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir()
    records = [*documents(1, 600, half=0, kinds=MODEL_KINDS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([str(one["text"]) for one in records], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "in.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
    config = PiiTrainConfig(
        tokenizer_file=str(folder / "tokenizer.json"),
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        dropout=0.0,
        labels=MODEL_KINDS,
        window=64,
        overlap=16,
        train_batch=16,
        epochs=3,
        learning_rate=3e-3,
        warmup=20,
        device="cpu",
    )
    output = folder / "out"
    options = RunOptions(input=(str(folder / "in.jsonl"),), output=str(output))
    train(options, config, on_step=lambda done, total: None)
    return load(output, device="cpu", window=64, overlap=16, batch_size=16, bf16=False)
