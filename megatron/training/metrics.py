"""Where a run's numbers go: the terminal, metrics.jsonl, TensorBoard, Weights & Biases. Rank 0 only.

The caller decides when; nothing here touches a device or a process group.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.config import Config
from megatron.data.consumption import Consumption
from megatron.logging import get_logger
from megatron.metrics_file import METRICS_FILE
from megatron.whole_file import replacing

logger = get_logger(__name__)


def _json_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what JSON cannot hold (nan, inf) by null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def truncate_metrics(path: Path, iteration: int) -> None:
    """Drop the lines of steps after iteration, which a resumed run is about to write again; replace atomically."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            if json.loads(line)["iteration"] <= iteration:
                kept.append(line + b"\n")
        except (ValueError, RecursionError, KeyError, TypeError):
            continue  # the torn last line of a killed run, or one that the disk damaged
    with replacing(path) as file:
        file.write(b"".join(kept))


class MetricsWriter:
    """Writes lines of numbers to every place the configuration names."""

    def __init__(self, config: Config, *, start_iteration: int) -> None:
        """Open the files. A fresh run starts them anew, a resumed one continues after its checkpoint's step."""
        save = Path(config.checkpoint.save) if config.checkpoint.save else None
        self._file, self._path = None, save / METRICS_FILE if save is not None else None
        if self._path is not None:
            with _going_on_without(METRICS_FILE):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                truncate_metrics(self._path, start_iteration if start_iteration > 0 else -1)
                self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = None
        with _going_on_without("TensorBoard"):
            self._tensorboard = _open_tensorboard(config, save, start_iteration)
        self._wandb = _open_wandb(config, save)

    def training(
        self,
        values: Mapping[str, Any],
        *,
        total_iterations: int,
        usual_step_seconds: float | None,
    ) -> None:
        """Write one training line; values are the fields of metrics.jsonl.

        usual_step_seconds: of the steps to come; None if only a first one was seen, which takes longer.
        """
        self._write(values)
        iteration = values["iteration"]
        for name, value in values.items():
            if name != "iteration" and value is not None:
                self._scalar(f"train/{name}", value, iteration)
        eta = "with the next line"
        if usual_step_seconds is not None or iteration == total_iterations:
            eta = format_duration((total_iterations - iteration) * (usual_step_seconds or 0.0))
        mfu = f" | MFU {values['mfu_full']:.1%}" if values["mfu_full"] is not None else ""
        skipped = f" | {values['skipped']} skipped" if values["skipped"] else ""
        logger.info(
            f"step {iteration:>{len(str(total_iterations))}}/{total_iterations}"
            f" | loss {values['lm_loss']:.4f} | grad norm {values['grad_norm']:.3f}"
            f" | lr {values['learning_rate']:.2e} | {values['step_time_s']:.2f} s/step"
            f" | {values['tokens_per_second']:,.0f} tokens/s{mfu}{skipped}"
            f" | ETA {eta}"
        )

    def validation(self, iteration: int, losses: Mapping[str, float]) -> None:
        """Write one line for each validation set."""
        for name, loss in losses.items():
            perplexity = math.exp(min(loss, 80.0))
            self._write(
                {"iteration": iteration, "validation": name, "lm_loss": loss, "ppl": perplexity}
            )
            self._scalar(f"lm-loss-validation/{name}/lm loss validation", loss, iteration)
            self._scalar(f"lm-loss-validation/{name}/ppl validation", perplexity, iteration)
        text = " | ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        logger.info(f"validation loss at step {iteration}: {text}")

    def sources(self, iteration: int, sources: Sequence[Consumption]) -> None:
        """Write one line for each source of a blend: what the run has read of it."""
        for one in sources:
            self._write({"iteration": iteration, **dataclasses.asdict(one)})
            self._scalar(f"data/{one.source}/epochs", one.epochs, iteration)
        if sources:
            text = " | ".join(
                f"{one.source} {one.samples:,} samples, {one.tokens:,} tokens, {one.epochs:.3f} epochs"
                for one in sources
            )
            logger.info(f"read by step {iteration}: {text}")

    def remark(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Write a line of its own about what was noticed by this step."""
        self._write({"iteration": iteration, **values})

    def rollback(self, values: Mapping[str, Any]) -> None:
        """Forget the lines of steps after `iteration`, which come again with other samples, and write one line."""
        if self._file is not None and self._path is not None:
            with _going_on_without(METRICS_FILE):
                self._file.close()
                truncate_metrics(self._path, values["iteration"])
                self._file = self._path.open("a", encoding="utf-8")
        self._write(values)

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            with _going_on_without(METRICS_FILE):
                self._file.write(json.dumps(_json_ready(values)) + "\n")
                self._file.flush()

    def _scalar(self, name: str, value: float, iteration: int) -> None:
        if self._tensorboard is not None:
            with _going_on_without("TensorBoard"):
                self._tensorboard.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log({name: value}, step=iteration)

    def close(self) -> None:
        """Flush and close everything."""
        if self._file is not None:
            with _going_on_without(METRICS_FILE):
                self._file.close()
        if self._tensorboard is not None:
            with _going_on_without("TensorBoard"):
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


@contextmanager
def _going_on_without(name: str) -> Iterator[None]:
    """Say that a full or failing disk took numbers, and no more: the weights are worth more than their curve."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be written (%s); training goes on without", name, error)


def _open_tensorboard(config: Config, save: Path | None, start_iteration: int) -> Any:
    """Open a TensorBoard writer under --tensorboard-dir or SAVE/tensorboard; None without either."""
    folder = config.logging.tensorboard_dir or (save and str(save / "tensorboard"))
    if not folder:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides the events of steps that a resumed run writes again.
    return SummaryWriter(folder, purge_step=start_iteration + 1 if start_iteration else None)


def _open_wandb(config: Config, save: Path | None) -> Any:
    """Start a Weights & Biases run if one is asked for."""
    if config.logging.wandb_project_name is None:
        return None
    import wandb  # `open_inputs` saw that it is installed

    return wandb.init(
        entity=config.logging.wandb_entity_name,
        project=config.logging.wandb_project_name,
        name=save.name if save else None,
        id=_wandb_id(save) if save else None,
        resume="allow",
    )


def _wandb_id(save: Path) -> str:
    """Give the run's id, kept beside its checkpoints so that a resume continues the same curves."""
    path = save / "wandb_id.txt"
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def format_duration(seconds: float) -> str:
    """Write seconds as 45s, 3m05s, 2h07m or 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
