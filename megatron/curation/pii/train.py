"""`curate.py pii-train`: teach a classifier of tokens to find personal data in annotated text (StarCoder §4, StarPII).

An encoder's folder is fine-tuned, or a small one begins from nothing. Order, dropout and new weights are functions of the
seed and the step, so a run that was stopped goes on as if it had not been. Knows nothing of rules and of redaction.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron.curation.pii.encoder import begin_model
from megatron.curation.pii.model import Classifier, libraries, max_window, pad, windows_of
from megatron.curation.pii.spans import (
    UNUSED,
    Annotated,
    Score,
    annotated,
    scores,
    tags_of,
    token_tags,
)
from megatron.curation.pii.train_options import PiiTrainConfig
from megatron.curation.run.document import Document
from megatron.curation.run.options import RunOptions
from megatron.curation.run.output_folder import LOCK, locked
from megatron.curation.run.passes import plan
from megatron.data.permutation import Permutation, keyed_word
from megatron.data.publish import publish
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.option_field import require
from megatron.whole_file import force_to_disk, replacing

logger = get_logger(__name__)

MAX_WEIGHT = 20.0
BETAS, CLIP = (0.9, 0.999), 1.0
STATE, REPORT = "training.pt", "report.json"
RUN = "run.json"  # whose the folder is while it has no report


@dataclass(frozen=True)
class Example:
    """A window for training."""

    ids: npt.NDArray[np.int64]
    tags: npt.NDArray[np.int64]


def train(
    options: RunOptions, config: PiiTrainConfig, *, on_step: Callable[[int, int], object]
) -> dict[str, Score]:
    """Train, write the best model to the output folder, and give its scores on what was held out.

    on_step is told the steps done and of all. Raises DataError for records without spans.
    """
    config.check()
    records = _read(options)
    training, held_out = split(records, config)
    libraries()
    output, fingerprint = options.folder, _fingerprint(config, records)
    with locked(output):
        best = _completed(output, fingerprint)
        if best is None:
            run = _Run(output, config, fingerprint, options.overwrite)
            best = run.train(training, held_out, on_step)
    return best


def _read(options: RunOptions) -> list[Annotated]:
    records: list[Annotated] = []
    for source in plan(options):
        for item in source.read():
            if not isinstance(item, Document):
                raise DataError(
                    f"{item.place}: {item.reason}; every record must have text and spans"
                )
            records.append(annotated(item))
    if len(records) < 2:
        raise DataError(
            f"{', '.join(options.input)}: {len(records)} records; some are needed to learn from, and one to validate"
        )
    return records


def split(
    records: Sequence[Annotated], config: PiiTrainConfig
) -> tuple[list[Annotated], list[Annotated]]:
    """Give the records to learn from and those held out, by a hash of their text: equal texts stay together."""
    ordered = sorted(
        records, key=lambda one: (keyed_word(config.seed, "held out", one.text), one.id)
    )
    count = min(max(round(len(ordered) * config.validation), 1), len(ordered) - 1)
    while 0 < count < len(ordered) - 1 and ordered[count].text == ordered[count - 1].text:
        count += 1
    return ordered[count:], ordered[:count]


def _fingerprint(config: PiiTrainConfig, records: Sequence[Annotated]) -> str:
    digest = hashlib.sha256(repr(dataclasses.replace(config, device="auto")).encode())
    for record in records:
        digest.update(repr((record.text, record.spans)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _completed(output: Path, fingerprint: str) -> dict[str, Score] | None:
    """Give the scores of a run that has ended, if it is this one."""
    try:
        report = orjson.loads((output / REPORT).read_bytes())
        if report["fingerprint"] != fingerprint or not report["complete"]:
            return None
        found = {label: _score(one) for label, one in report["scores"].items()}
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    logger.info("%s is complete already", output)
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _score(counts: dict[str, Any]) -> Score:
    return Score(counts["right"], counts["found"], counts["there"])


class _Run:
    """One training: its model, optimizer and how far it is."""

    def __init__(
        self, output: Path, config: PiiTrainConfig, fingerprint: str, overwrite: bool
    ) -> None:
        import torch

        self._torch = torch
        self._output = output
        self._config = config
        self._fingerprint = fingerprint
        self._state = self._older_state(overwrite)
        cuda = config.device != "cpu" and torch.cuda.is_available()
        require(config.device != "cuda" or cuda, "--device cuda: torch sees no GPU here")
        torch.manual_seed(keyed_word(config.seed, "weights") >> 1)
        model, self._tokens = begin_model(config)
        self._window = min(config.window, max_window(model.config, self._tokens.whole))
        self._size = self._window - len(self._tokens.before) - len(self._tokens.after)
        self._model = model.to("cuda" if cuda else "cpu")
        matrices = [one for one in model.parameters() if one.ndim > 1]
        others = [one for one in model.parameters() if one.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=BETAS,
        )

    def _older_state(self, overwrite: bool) -> dict[str, Any]:
        """Give the state of a run that was stopped; DataError if the folder holds another."""
        found: object = None
        try:
            for name in (REPORT, RUN):
                path = self._output / name
                found = orjson.loads(path.read_bytes())["fingerprint"] if path.exists() else found
            if found == self._fingerprint and (self._output / STATE).exists():
                path = self._output / STATE
                state: dict[str, Any] = self._torch.load(path, "cpu", weights_only=True)
                if state["fingerprint"] == self._fingerprint:
                    logger.info("continuing after epoch %d", state["epoch"])
                    return state
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
            found = f"damaged: {error}"
        others = [one.name for one in self._output.iterdir() if one.name != LOCK]
        if others and not overwrite and found != self._fingerprint:
            raise DataError(
                f"--output {self._output} holds {sorted(others)[0]}, of another run, other settings or other records; "
                "name another folder, or add --overwrite"
            )
        _write_json(self._output / RUN, {"fingerprint": self._fingerprint})
        return {}

    def train(
        self,
        training: Sequence[Annotated],
        held_out: Sequence[Annotated],
        on_step: Callable[[int, int], object],
    ) -> dict[str, Score]:
        """Do all epochs that are left, and give the best scores."""
        config, state = self._config, self._state
        examples = [example for record in training for example in self._examples(record)]
        if not examples:
            raise DataError("the records to learn from hold no token")
        weights = class_weights(examples, len(tags_of(config.labels)), config)
        per_epoch = -(-len(examples) // config.train_batch)
        first, best_f1, best_epoch = 0, -1.0, 0
        best: dict[str, Score] = {}
        if state:
            self._model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            first, best_f1, best_epoch = state["epoch"], state["best_f1"], state["best_epoch"]
            best = {label: _score(counts) for label, counts in state["best"].items()}
        for epoch in range(first, config.epochs):
            if epoch - best_epoch >= config.patience:
                break
            order = Permutation(len(examples), keyed_word(config.seed, "order", epoch))
            chosen = [examples[order[number]] for number in range(len(examples))]
            for number in range(per_epoch):
                step = epoch * per_epoch + number
                batch = chosen[number * config.train_batch : (number + 1) * config.train_batch]
                self._step(batch, step, per_epoch * config.epochs, weights)
                on_step(step + 1, per_epoch * config.epochs)
            now = self._evaluate(held_out)
            logger.info("epoch %d: F1 %.4f of %d records", epoch + 1, now["all"].f1, len(held_out))
            if now["all"].f1 > best_f1:
                best_f1, best_epoch, best = now["all"].f1, epoch + 1, now
                self._save_model(best, epoch + 1)
            self._save_state(epoch + 1, best_f1, best_epoch, best)
        self._write_report(self._output, best, best_epoch, complete=True)
        for name in (STATE, RUN):
            (self._output / name).unlink(missing_ok=True)
        return best

    def _examples(self, record: Annotated) -> list[Example]:
        ids, offsets = self._tokens.encode(record.text)
        tags = token_tags(offsets, record.spans, self._config.labels)
        overlap = min(self._config.overlap, self._size // 2)
        return [
            Example(ids[one.begin : one.end], tags[one.begin : one.end])
            for one in windows_of(0, len(ids), self._size, overlap)
        ]

    def _step(self, batch: Sequence[Example], step: int, num_steps: int, weights: Any) -> None:
        torch, config = self._torch, self._config
        device = next(self._model.parameters()).device
        ids, mask = pad([one.ids for one in batch], self._tokens, self._size)
        tags = np.full(ids.shape, UNUSED, np.int64)
        begin = len(self._tokens.before)
        for row, one in enumerate(batch):
            tags[row, begin : begin + len(one.tags)] = one.tags
        for group in self._optimizer.param_groups:
            group["lr"] = rate(step, num_steps, config)
        torch.manual_seed(keyed_word(config.seed, "dropout", step) >> 1)
        self._model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            logits = self._model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            torch.from_numpy(tags).to(device).flatten(),
            weight=weights.to(device),
            ignore_index=UNUSED,
            reduction="sum",
        ) / max(int((tags != UNUSED).sum()), 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _evaluate(self, held_out: Sequence[Annotated]) -> dict[str, Score]:
        classifier = Classifier(
            self._model.eval(),
            self._tokens,
            window=self._window,
            overlap=self._config.overlap,
            batch_size=self._config.train_batch,
            bf16=self._config.bf16,
        )
        found = classifier.spans([record.text for record in held_out], threshold=0.5)
        truth = [record.spans for record in held_out]
        return scores(zip(found, truth, strict=True), self._config.labels)

    def _save_model(self, best: dict[str, Score], epoch: int) -> None:
        """Write the folder file by file, the report last."""
        aside = self._output / ".model"
        shutil.rmtree(aside, ignore_errors=True)
        self._model.save_pretrained(aside)
        self._tokens.whole.save_pretrained(aside)
        self._write_report(aside, best, epoch, complete=False)
        files = sorted(aside.iterdir(), key=lambda path: path.name == REPORT)
        for path in files:
            # weights come readable by their owner alone
            path.chmod((aside / "config.json").stat().st_mode)
            force_to_disk(path)
        publish([(path, self._output / path.name) for path in files])
        aside.rmdir()

    def _write_report(
        self, folder: Path, best: dict[str, Score], epoch: int, *, complete: bool
    ) -> None:
        report = {
            "fingerprint": self._fingerprint,
            "complete": complete,
            "epoch": epoch,
            "scores": {label: score.to_json() for label, score in best.items()},
        }
        _write_json(folder / REPORT, report)

    def _save_state(
        self, epoch: int, best_f1: float, best_epoch: int, best: dict[str, Score]
    ) -> None:
        state = {
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "best_f1": best_f1,
            "best_epoch": best_epoch,
            "best": {label: score.to_json() for label, score in best.items()},
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        with replacing(self._output / STATE) as file:
            self._torch.save(state, file)


def class_weights(examples: Sequence[Example], num_tags: int, config: PiiTrainConfig) -> Any:
    """Give what a token of each class counts: 1 for what is outside."""
    import torch

    if config.class_weights == "none":
        return torch.ones(num_tags)
    tags = np.concatenate([one.tags for one in examples])
    counts = np.bincount(tags[tags != UNUSED], minlength=num_tags)
    weights = np.sqrt(counts[0] / np.maximum(counts, 1))
    return torch.tensor(np.clip(weights, 1.0, MAX_WEIGHT), dtype=torch.float32)


def rate(step: int, num_steps: int, config: PiiTrainConfig) -> float:
    """Give the learning rate of a step: up in a line, down in a cosine."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(num_steps - config.warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def report_table(best: dict[str, Score]) -> str:
    """Lay the scores out as a table."""
    lines = [f"{'label':<12} {'precision':>9} {'recall':>9} {'F1':>9} {'spans':>9}"]
    for label, score in best.items():
        values = f"{score.precision:9.4f} {score.recall:9.4f} {score.f1:9.4f} {score.there:9,}"
        lines.append(f"{label:<12} {values}")
    return "\n".join(lines)
