"""From where steps of a run can be computed again: the options it had then and the checkpoint before them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megatron.checkpoint.checksums import read_state
from megatron.checkpoint.layout import METADATA_FILE, checkpoint_folder
from megatron.config import Config
from megatron.errors import ConfigError
from megatron.optimizer.schedule import Schedule
from megatron.options import CheckpointConfig, LoggingConfig
from megatron.training.fingerprint import Fingerprint, read_fingerprint
from megatron.training.history.trace import RunRecord
from megatron.training.inputs import Inputs, open_inputs
from megatron.training.start import Start, find_start


@dataclass(frozen=True)
class ReplayPlan:
    """What is computed again, and from what."""

    root: Path  # the run's folder
    inputs: Inputs  # with its options as they were then, but for what a run writes
    start: Start
    first_step: int
    last_step: int
    consumed_samples: int  # before the first step
    stored: Path | None  # the checkpoint that the run saved after the last step, if it did

    @property
    def num_steps(self) -> int:
        return self.last_step - self.first_step + 1


def plan_replay(path: Path, step: int, world_size: int) -> ReplayPlan:
    """Plan to compute a step of the run in a folder, from the newest checkpoint before it. No collective.

    Raises ConfigError for another number of processes than the run had, whose sums would be rounded otherwise, and
    CheckpointError or DataError for files that are not what they were.
    """
    record = RunRecord.open(path, step)
    root = record.folder.parent if record.saved else record.folder
    record.batch_of(step, record.data_parallel_size(world_size))  # there is such a step
    if record.world_size not in (None, world_size):
        raise ConfigError(
            f"{root} was trained by {record.world_size} processes at step {step} and this is {world_size}: another "
            f"layout adds in another order. Start with torchrun --nproc-per-node (or tools/launch.py) so that there are as many"
        )
    inputs = open_inputs(_without_outputs(record.config), world_size)
    record.require_same_files(inputs.config.data.exclude_documents_sha256, inputs.contents)
    earlier = [checkpoint_folder(root, number) for number, _ in record.saved if number < step]
    folders = [folder for folder in earlier if (folder / METADATA_FILE).is_file()]
    start = _start(record, root, inputs, world_size, folders[-1] if folders else None)
    first = start.state["iteration"] + 1 if start.takes_progress else 1
    stored = checkpoint_folder(root, step)
    dp_size = record.data_parallel_size(world_size)
    return ReplayPlan(
        root,
        inputs,
        start,
        first_step=first,
        last_step=step,
        consumed_samples=record.batch_of(first, dp_size)[0],
        stored=stored if (stored / METADATA_FILE).is_file() else None,
    )


def _without_outputs(config: Config) -> Config:
    """Leave out all that writes, checks or ends, and does not touch the numbers of a step."""
    policy = config.training.loss_spike_policy
    training = replace(
        config.training,
        loss_spike_policy="skip" if policy == "rollback" else policy,
        eval_iters=0,
        exit_interval=None,
        exit_duration_in_mins=None,
        check_weight_hash_across_dp_replicas_interval=None,
    )
    return replace(
        config,
        training=training,
        checkpoint=CheckpointConfig(),
        logging=LoggingConfig(log_interval=config.logging.log_interval),
    )


def _start(
    record: RunRecord, root: Path, inputs: Inputs, world_size: int, folder: Path | None
) -> Start:
    """Start from a checkpoint of the run's own, or as the run itself did."""
    config = inputs.config
    batch_size = config.global_batch_size(record.data_parallel_size(world_size))
    saved = read_fingerprint(record.folder).schedule if record.saved else None
    schedule = saved or Schedule.create(config.optimizer, config.training, batch_size)
    opt_outs = config.data.exclude_documents_sha256
    start = Start(folder, {}, schedule, inputs.contents, opt_outs)
    if folder is not None:
        return replace(start, state=read_state(folder), takes_optimizer=True, takes_progress=True)
    options = record.config.checkpoint
    if options.load is None or Path(options.load).resolve() == root.resolve():
        return start
    elsewhere = CheckpointConfig(
        load=options.load, finetune=options.finetune, no_load_optim=options.no_load_optim
    )
    ours = replace(config, checkpoint=elsewhere)
    return find_start(Fingerprint(ours, schedule, batch_size, inputs.contents))
