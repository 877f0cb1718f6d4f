"""Options of what is written and read back: checkpoints, logs."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.option_field import option, require


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run is kept and what a start takes from an earlier one."""

    save: str | None = option(None, "folder of the run: checkpoints, metrics, configuration")
    load: str | None = option(None, "folder to continue from; usually that of --save")
    save_interval: int | None = option(None, "steps between checkpoints", minimum=1)
    finetune: bool = option(False, "take the weights only and start at iteration 0")
    no_load_optim: bool = option(False, "start the optimizer afresh")
    no_load_rng: bool = option(False, "take the seed of the command line, not the checkpoint's")
    no_save_optim: bool = option(False, "write weights only; such a checkpoint cannot resume")
    override_opt_param_scheduler: bool = option(
        False, "schedule from the flags", flag="--override-opt_param-scheduler"
    )
    override_exclude_documents: bool = option(
        False, "go on with another --exclude-documents than the checkpoint's"
    )
    override_tokenizer: bool = option(False, "go on with another tokenizer than the checkpoint's")
    override_train_data: bool = option(
        False, "go on with other token files, weights or splits to train on than the checkpoint's"
    )
    override_eval_data: bool = option(
        False, "go on with other validation and test sets than the checkpoint's"
    )
    override_samples: bool = option(
        False,
        "go on with another --seq-length, FIM, or treatment of documents than the checkpoint's",
    )
    override_numerics: bool = option(
        False,
        "go on with another precision, dropout, Adam beta, epsilon or clipping than the checkpoint's",
    )
    use_checkpoint_opt_param_scheduler: bool = option(
        False, "schedule from the checkpoint", flag="--use-checkpoint-opt_param-scheduler"
    )
    exit_on_missing_checkpoint: bool = option(
        False, "an empty --load is an error rather than a fresh start"
    )

    async_save: bool = option(
        False,
        "training waits only until the tensors are copied to host memory, which has to hold them; threads write them",
    )
    exit_on_failed_save: bool = option(
        False, "a save that fails ends the run, rather than being tried again at the next interval"
    )
    keep_last: int | None = option(
        None,
        "keep this many checkpoints, deleting older ones once a newer one was read back whole (default: all)",
        minimum=1,
    )
    save_retain_interval: int | None = option(
        None,
        "keep checkpoints of multiples of this many steps, besides the last or --keep-last",
        minimum=1,
    )
    no_checkpoint_fallback: bool = option(
        False, "a damaged latest checkpoint is an error rather than an older one taken in its place"
    )

    def check(self) -> None:
        require(
            self.save is not None or not self.async_save,
            "--async-save needs --save, the folder to write to",
        )
        require(
            self.save is not None or self.keep_last is self.save_retain_interval is None,
            "--keep-last and --save-retain-interval need --save, the folder to delete from",
        )
        require(
            self.save_interval is None or self.save is not None,
            "--save-interval needs --save, the folder to write to",
        )
        require(
            not (self.override_opt_param_scheduler and self.use_checkpoint_opt_param_scheduler),
            "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler "
            "exclude each other; keep one",
        )
        require(
            not self.finetune or self.load is not None,
            "--finetune needs --load, the folder with the weights",
        )
        require(
            not (self.finetune and self.use_checkpoint_opt_param_scheduler),
            "--finetune starts a schedule of its own; leave out --use-checkpoint-opt_param-scheduler",
        )


@dataclass(frozen=True)
class LoggingConfig:
    """Where progress is written, besides the terminal and metrics.jsonl under --save."""

    log_interval: int = option(100, "steps between lines", minimum=1)
    tensorboard_dir: str | None = option(None, "TensorBoard events (default: SAVE/tensorboard)")
    wandb_entity_name: str | None = option(None, "Weights & Biases entity")
    wandb_project_name: str | None = option(None, "Weights & Biases project")
    structured_logs: bool = option(False, "also one JSON-lines log file for each process")
    structured_logs_dir: str | None = option(None, "folder of those files (default: SAVE/logs)")

    def check(self) -> None:
        require(
            (self.wandb_entity_name is None) == (self.wandb_project_name is None),
            "--wandb-entity-name and --wandb-project-name go together",
        )
        require(
            self.structured_logs or self.structured_logs_dir is None,
            "--structured-logs-dir needs --structured-logs",
        )
