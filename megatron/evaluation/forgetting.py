"""What a model has lost by being trained on: losses and pass@1, set by set, before and after, and a verdict.

StarCoder became better at Python and fell from 17.3 to 1.2 points at Ruby and from 11.8 to 0.1 at Racket (pass@1 of MultiPL-E's
HumanEval, StarCoderBase to StarCoder); its loss on Python could not show that. So each set is judged by itself, and a mean
over sets by nobody. Losses are of the same samples before and after, so that their change is no noise of a draw;
pass@1 has that of the tasks, and falls only if a bootstrap over pairs of tasks says so. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron.data.build import FIM_SUFFIX
from megatron.errors import DataError
from megatron.evaluation.pass_at_k import NUM_RESAMPLES
from megatron.metrics_file import read_losses

Verdict = Literal["kept", "forgotten", "waived"]

# Of how samples were drawn, what two evaluations need not share.
FREE_SETTINGS = frozenset({"model", "iteration", "seed", "num_samples"})


@dataclass(frozen=True)
class Limits:
    """How much may be lost."""

    loss_rise: float = 3.0  # % of the loss before
    pass_fall: float = 2.0  # points of pass@1
    waived: frozenset[str] = frozenset()  # sets that may lose more, with and without FIM

    def waives(self, name: str) -> bool:
        """Say whether a set may lose more."""
        return name in self.waived or name.removesuffix(FIM_SUFFIX) in self.waived


@dataclass(frozen=True)
class Change:
    """One set before and after. Of pass@1 in points, with the 95 % interval of the change."""

    kind: Literal["loss", "pass@1"]
    name: str
    before: float
    after: float
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    steps: tuple[int, int] | None = None  # of a loss of one run: where it was before and after

    @property
    def percent(self) -> float:
        """The change in % of what was before; of nothing, infinite or none."""
        return _percent(self.before, self.after)


def compare_losses(metrics: Sequence[Path], limits: Limits) -> list[Change]:
    """Compare the first and the last validation of a run, or the last ones of two.

    Raises DataError for files that do not hold both.
    """
    runs = [_validations(path) for path in metrics]
    choose = min if len(runs) == 1 else max
    before = {name: choose(losses) for name, losses in runs[0].items()}
    if len(runs) == 1 and all(len(losses) < 2 for losses in runs[0].values()):
        raise DataError(
            f"{metrics[0]} holds one validation of each set and not two; give a run that validated at its start and its "
            "end, or the metrics.jsonl of a run before and of one after"
        )
    after = {name: max(losses) for name, losses in runs[-1].items()}
    missing = sorted(before.keys() - after.keys())
    if missing:
        raise DataError(
            f"{metrics[-1]} has no loss of {', '.join(missing)}, which {metrics[0]} has; validate the same sets"
        )
    changes = []
    for name, step in before.items():
        one, two = runs[0][name][step], runs[-1][name][after[name]]
        is_kept = math.isfinite(two) and not _percent(one, two) > limits.loss_rise
        verdict = _verdict(name, limits, is_kept=is_kept)
        steps = (step, after[name]) if len(runs) == 1 else None
        changes.append(Change("loss", name, one, two, verdict, steps=steps))
    return changes


def _validations(path: Path) -> dict[str, dict[int, float]]:
    """Give {set: {iteration: loss}} of a metrics.jsonl; a loss that was not finite is NaN. Raises DataError."""
    found: dict[str, dict[int, float]] = {}
    for line in read_losses(path):
        if line.validation is not None:
            found.setdefault(line.validation, {})[line.iteration] = line.loss
    if not found:
        raise DataError(
            f"{path} holds no validation; give a run's metrics.jsonl, of one with validation sets and --eval-iters"
        )
    return found


def compare_reports(before: Sequence[Path], after: Sequence[Path], limits: Limits) -> list[Change]:
    """Compare pass@1 by benchmark and language or library, from reports of tools/evaluate.py. Raises DataError."""
    old, new = (_by_name(paths) for paths in (before, after))
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())
        raise DataError(
            f"{', '.join(odd)} has a report before or after and not both; evaluate the same benchmarks twice"
        )
    changes = []
    for name, (settings, rates) in old.items():
        other_settings, other_rates = new[name]
        if rates.keys() != other_rates.keys():
            odd = sorted(rates.keys() ^ other_rates.keys())
            raise DataError(
                f"{name} has {len(odd)} tasks before or after and not both, {odd[0]} for one; evaluate the same tasks"
            )
        if settings != other_settings:
            raise DataError(
                f"{name} was sampled with {settings} and then with {other_settings}; sample both alike"
            )
        one, two = (100 * np.array([r[task] for task in rates]) for r in (rates, other_rates))
        differences = two - one
        draws = np.random.default_rng(0).integers(
            len(differences), size=(NUM_RESAMPLES, len(differences))
        )
        low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5]).tolist()
        is_kept = -differences.mean() <= limits.pass_fall or high >= 0
        verdict = _verdict(name, limits, is_kept=bool(is_kept))
        changes.append(
            Change("pass@1", name, float(one.mean()), float(two.mean()), verdict, low, high)
        )
    return changes


def is_forgetful(changes: Sequence[Change]) -> bool:
    """Say whether any set lost more than it may."""
    return any(change.verdict == "forgotten" for change in changes)


def to_json(changes: Sequence[Change], limits: Limits) -> dict[str, Any]:
    """Give all of it as JSON values."""
    rows = [asdict(change) | {"percent": change.percent} for change in changes]
    return {
        "verdict": "forgotten" if is_forgetful(changes) else "kept",
        "limits": asdict(limits) | {"waived": sorted(limits.waived)},
        "changes": [{key: _finite(value) for key, value in row.items()} for row in rows],
    }


def to_markdown(changes: Sequence[Change], limits: Limits) -> str:
    """Give a report for people, what is lost first."""
    lost = [change.name for change in changes if change.verdict == "forgotten"]
    lines = [
        "# Forgetting",
        "",
        f"**Forgotten: {', '.join(lost)}.**" if lost else "Nothing is lost beyond the limits.",
        "",
        f"Limits: a loss may rise by {limits.loss_rise:g} %, pass@1 may fall by {limits.pass_fall:g} points, or more "
        "where its 95 % interval over tasks includes no change.",
    ]
    order = sorted(changes, key=lambda change: change.verdict != "forgotten")
    for kind, unit in (("loss", "nats a token"), ("pass@1", "%")):
        rows = [change for change in order if change.kind == kind]
        if rows:
            lines += [
                "",
                f"| {kind}, {unit} | before | after | change | |",
                "|---|---|---|---|---|",
            ]
            lines += [_row(change) for change in rows]
    firsts = {change.steps[0] for change in changes if change.steps}
    late = [change for change in changes if change.steps and change.steps[0] > min(firsts)]
    lines += [""] * bool(late)
    lines += [
        f"{change.name} was validated from step {change.steps[0]} on, and others from {min(firsts)}: what it lost before "
        "is not seen here."
        for change in late
        if change.steps
    ]
    return "\n".join([*lines, ""])


def _percent(before: float, after: float) -> float:
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return 100 * (after / before - 1)


def _row(change: Change) -> str:
    verdict = f"**{change.verdict}**" if change.verdict == "forgotten" else change.verdict
    difference = change.after - change.before
    if change.kind == "loss":
        figures = f"{change.before:.3f} | {change.after:.3f} | {difference:+.3f} ({change.percent:+.1f} %)"
    else:
        interval = f"{change.low:+.1f} to {change.high:+.1f}"
        figures = f"{change.before:.1f} | {change.after:.1f} | {difference:+.1f} ({interval})"
    return f"| {change.name} | {figures} | {verdict} |"


def _verdict(name: str, limits: Limits, *, is_kept: bool) -> Verdict:
    if is_kept:
        return "kept"
    return "waived" if limits.waives(name) else "forgotten"


def _finite(value: object) -> object:
    """Give null for what JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_name(paths: Sequence[Path]) -> dict[str, tuple[Any, dict[str, float]]]:
    """Give settings and {task: part of its samples that are right}, by benchmark and group of its tasks."""
    found: dict[str, tuple[Any, dict[str, float]]] = {}
    for path in paths:
        for name, settings, rates in _read_report(path):
            if name in found:
                raise DataError(f"{path}: another report has {name} already; give each once")
            found[name] = (settings, rates)
    return found


def _read_report(path: Path) -> Iterator[tuple[str, Any, dict[str, float]]]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        benchmark, drawn = str(report["benchmark"]), report["settings"]
        settings = drawn and {key: drawn[key] for key in drawn if key not in FREE_SETTINGS}
        counts: Mapping[str, int] = report["tasks"]
        rates = {task: count / report["num_samples"] for task, count in counts.items()}
        parts = {f"{benchmark}/{group}": row["tasks"] for group, row in report["groups"].items()}
        found = {name: {task: rates[task] for task in tasks} for name, tasks in parts.items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise DataError(f"{path} is no report; give a .report.json of tools/evaluate.py") from None
    if not rates:
        raise DataError(f"{path} has no tasks; give a .report.json of tools/evaluate.py")
    for name, of_group in (found or {benchmark: rates}).items():
        yield name, settings, of_group
