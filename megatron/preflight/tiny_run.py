"""Two steps of a tiny model in the layout of a run: equal to one process, and the same after a resume.

`python -m megatron.preflight.tiny_run OPTIONS.json` is the one process. What runs is the training loop itself.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from megatron import logging
from megatron.checkpoint.layout import checkpoint_folder
from megatron.checkpoint.reader import CheckpointReader
from megatron.config import Config, from_json, to_json
from megatron.errors import ConfigError
from megatron.metrics_file import METRICS_FILE, read_losses
from megatron.options import LoggingConfig, ParallelConfig, TrainingConfig
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.launch import Launch
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.train import train

HEAD_DIM, HEADS_A_TP, SEQ_LENGTH, NUM_STEPS = 16, 4, 64, 2
# Of a loss near ln(vocabulary): sums in another order, in the precision of the run.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3, "float16": 2e-3}


def tiny(config: Config, world_size: int, save: Path) -> Config:
    """Shrink a run's model and data, keep its layout, precision and kinds of layers."""
    parallel, model, batch = config.parallel, config.model, config.training
    tp, dp = parallel.tensor_model_parallel_size, parallel.data_parallel_size(world_size)
    heads = HEADS_A_TP * tp
    groups = {1: 1, model.num_attention_heads: heads}.get(model.query_groups, 2 * tp)
    num_micro_batches = 2 * parallel.pipeline_model_parallel_size  # what any schedule takes
    seq_length = (
        SEQ_LENGTH * parallel.context_parallel_size * (tp if parallel.sequence_parallel else 1)
    )
    num_layers = _num_layers(config)
    return replace(
        config,
        model=replace(
            model,
            num_layers=num_layers,
            hidden_size=heads * HEAD_DIM,
            num_attention_heads=heads,
            attention_head_type="multihead",  # num_query_groups says it
            num_query_groups=groups,
            kv_channels=None,
            ffn_hidden_size=None,
            max_position_embeddings=seq_length,
            window_size=None,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            deterministic_mode=True,  # a GPU's attention gives no other bits when asked twice
        ),
        data=replace(config.data, seq_length=seq_length, num_workers=0, valid_num_workers=0),
        training=replace(
            TrainingConfig(seed=batch.seed),
            micro_batch_size=1,
            global_batch_size=num_micro_batches * dp,
            train_iters=NUM_STEPS,
            eval_iters=0,
        ),
        optimizer=replace(
            config.optimizer,
            lr=1e-3,
            min_lr=0.0,
            lr_decay_style="constant",
            lr_decay_iters=None,
            lr_decay_samples=None,
            lr_warmup_iters=0,
            lr_warmup_samples=0,
            lr_warmup_fraction=None,
        ),
        checkpoint=replace(
            config.checkpoint,
            save=str(save),
            load=str(save),
            save_interval=1,
            finetune=False,
            use_checkpoint_opt_param_scheduler=False,
        ),
        logging=replace(LoggingConfig(), log_interval=1),
    )


def _num_layers(config: Config) -> int:
    """Give as few layers as the split over stages allows."""
    parallel = config.parallel
    for number in range(1, config.model.num_layers):
        candidate = replace(config, model=replace(config.model, num_layers=number))
        try:
            candidate.check(parallel.model_parallel_size)
        except ConfigError:
            continue
        return number
    return config.model.num_layers


def alone(config: Config) -> Config:
    """Give the same run for one process."""
    parallel = replace(ParallelConfig(), distributed_timeout_minutes=1)
    return replace(config, parallel=parallel)


def train_here(config: Config, context: ParallelContext, *, last: int | None = None) -> None:
    """Train up to a step, or to the end. Collective over the world."""
    training = replace(config.training, exit_interval=last)
    inputs = open_inputs(replace(config, training=training), context.world_size)
    run = build_run(inputs, plan_start(inputs, context.world_size), context)
    train(run)
    run.close()


def losses(save: Path) -> list[float]:
    """Give the losses of a run by step."""
    lines = read_losses(save / METRICS_FILE)
    by_step = {line.iteration: line.loss for line in lines if line.validation is None}
    return [by_step[step] for step in sorted(by_step)]


def train_alone(config: Config, save: Path, patience_seconds: float) -> list[float]:
    """Train the same in a process of its own, and give its losses. Raises subprocess errors."""
    options = save.with_suffix(".json")
    places = replace(config.checkpoint, save=str(save), load=str(save))
    options.write_text(json.dumps(to_json(replace(alone(config), checkpoint=places))))
    command = [sys.executable, "-m", "megatron.preflight.tiny_run", str(options)]
    # env -u: it is no process of this launch
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    unset = [word for name in names for word in ("-u", name)]
    subprocess.run(
        ["env", *unset, *command],
        check=True,
        capture_output=True,
        text=True,
        timeout=patience_seconds,
    )
    return losses(save)


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Name the tensors of the last step that are not bitwise equal."""
    first, second = (
        CheckpointReader.open(checkpoint_folder(folder, NUM_STEPS)) for folder in (one, other)
    )
    return [name for name in first.names() if not torch.equal(first.read(name), second.read(name))]


def main(argv: list[str]) -> None:
    """Train alone with the options of a file."""
    config = from_json(json.loads(Path(argv[0]).read_text()))
    logging.configure(1)
    launch = dataclasses.replace(Launch(), world_size=1)
    device = initialize_distributed(config.parallel, launch)
    train_here(config, ParallelContext.create(config.parallel, 1, device))


if __name__ == "__main__":
    main(sys.argv[1:])
