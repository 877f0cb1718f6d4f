"""All options of a run together: the checks that span sections, and the JSON that a checkpoint keeps.

Knows nothing of command lines, which `megatron.cli` reads, nor of torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron.layer_split import resolve_schedule, split_layers
from megatron.option_field import check_bounds, require
from megatron.options import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TokenizerConfig,
    TrainingConfig,
)

MAX_MICRO_BATCHES = 100_000  # of a step, whose passes are laid out in lists
FP8_WIDTHS = 16  # what the widths of 8-bit products must be multiples of


@dataclass(frozen=True)
class Config:
    """All sections of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def check(self, world_size: int) -> None:
        """Raise ConfigError unless a run of world_size processes can start with these options."""
        for item in dataclasses.fields(self):
            check_bounds(getattr(self, item.name))
        for section in (self.model, self.precision, self.optimizer, self.training, self.data):
            section.check()
        self.checkpoint.check()
        self.logging.check()
        self.parallel.check(world_size)
        dp_size = self.parallel.data_parallel_size(world_size)
        self._check_layers()
        self._check_sequence()
        self._check_documents()
        self._check_batches(dp_size)
        self._check_schedule()
        self._check_spikes()

    def _check_layers(self) -> None:
        model, parallel = self.model, self.parallel
        model.check_tensor_parallel(parallel.tensor_model_parallel_size)
        self._check_fp8()
        split_layers(model.num_layers, parallel)

    @property
    def wants_split_backward(self) -> bool:
        """Whether gradients of inputs and of weights are to be computed at different times, as the schedules in a V do.

        A product in 8 bits computes both when it is asked for one of them.
        """
        allows = self.model.allows_split_backward and self.precision.fp8_format is None
        return self.parallel.has_stages_in_v and allows

    def _check_fp8(self) -> None:
        model, tp_size = self.model, self.parallel.tensor_model_parallel_size
        widths = {
            "--hidden-size": model.hidden_size,
            f"--ffn-hidden-size / {tp_size}": model.ffn_size // tp_size,
            f"heads x width / {tp_size}": model.num_attention_heads * model.head_dim // tp_size,
            "2 x --kv-channels": 2 * model.head_dim,
        }
        odd = [f"{name} is {width}" for name, width in widths.items() if width % FP8_WIDTHS]
        require(
            self.precision.fp8_format is None or not odd,
            f"--fp8-format multiplies matrices whose widths are multiples of {FP8_WIDTHS}, and {', '.join(odd)}",
        )

    def _check_sequence(self) -> None:
        seq_length, parallel = self.data.seq_length, self.parallel
        tp_size, cp_size = parallel.tensor_model_parallel_size, parallel.context_parallel_size
        require(
            seq_length <= self.model.max_position_embeddings,
            f"--seq-length {seq_length} is longer than --max-position-embeddings "
            f"{self.model.max_position_embeddings}",
        )
        require(
            cp_size > 1 or seq_length % parallel.sequence_divisor == 0,
            f"--sequence-parallel splits the sequence and --seq-length {seq_length} is not "
            f"divisible by --tensor-model-parallel-size {tp_size}",
        )
        also = f", of which --sequence-parallel makes {tp_size} pieces"
        require(
            seq_length % parallel.sequence_divisor == 0,
            f"--context-parallel-size {cp_size} gives each process two chunks of the sequence"
            f"{also if parallel.sequence_parallel else ''}, and --seq-length {seq_length} is not divisible by "
            f"{parallel.sequence_divisor}; use a multiple of that",
        )

    def _check_documents(self) -> None:
        model = self.model
        hiding = {
            "--reset-attention-mask": self.data.reset_attention_mask,
            "--window-size": model.window_within(self.data.seq_length) is not None,
        }
        for flag, is_given in hiding.items():
            require(
                not is_given
                or model.attention_backend != "flash"
                or model.attention_dropout == 0.0,
                f"--attention-backend flash (--use-flash-attn) has no --attention-dropout "
                f"({model.attention_dropout}) with {flag}; use --attention-backend auto "
                f"or --attention-dropout 0",
            )

    def _check_batches(self, dp_size: int) -> None:
        training = self.training
        block = training.micro_batch_size * dp_size
        sizes = [self.global_batch_size(dp_size)]
        if training.rampup_batch_size is not None:
            start, increment, samples = training.rampup_batch_size
            require(
                start > 0 and increment > 0 and samples >= 0,
                f"--rampup-batch-size {start} {increment} {samples}: numbers above 0",
            )
            require(
                sizes[0] >= start and (sizes[0] - start) % increment == 0,
                f"--rampup-batch-size: steps of {increment} from {start} do not reach "
                f"--global-batch-size {sizes[0]}",
            )
            sizes += [start, min(start + increment, sizes[0])]
        first = min(sizes)
        require(
            training.train_samples is None or training.train_samples >= first,
            f"--train-samples {training.train_samples} is less than a first batch of {first}; raise it, or lower "
            f"--global-batch-size",
        )
        for size in sizes:
            require(
                size % block == 0,
                f"a global batch of {size} is not divisible by --micro-batch-size "
                f"{training.micro_batch_size} x {dp_size} data parallel processes; "
                f"use a multiple of {block}",
            )
        self._check_micro_batches([size // block for size in sizes])

    def _check_micro_batches(self, numbers: list[int]) -> None:
        """A pipeline needs enough micro-batches a step, from the first step of a ramp-up on.

        numbers: those of the last step and, of a ramp-up, of the first two: every other is a sum of their multiples.
        """
        require(
            max(numbers) <= MAX_MICRO_BATCHES,
            f"a step of {max(numbers)} micro-batches is more than the {MAX_MICRO_BATCHES} that are allowed; lower "
            f"--global-batch-size or raise --micro-batch-size",
        )
        num_ranks = self.parallel.pipeline_model_parallel_size
        if num_ranks == 1:
            return
        num_stages = len(split_layers(self.model.num_layers, self.parallel))
        schedule = resolve_schedule(num_stages, self.parallel)
        fewest = {"1f1b": num_ranks, "interleaved": num_ranks, "zbv": 1, "dualpipev": num_stages}
        change = "--global-batch-size (or the numbers of --rampup-batch-size)"
        require(
            min(numbers) >= fewest[schedule],
            f"a pipeline of {num_ranks} ranks and {num_stages} stages by --pipeline-schedule {schedule} needs at "
            f"least {fewest[schedule]} micro-batches a step and has {min(numbers)}; raise {change} or lower "
            f"--micro-batch-size",
        )
        require(
            schedule != "interleaved" or all(number % num_ranks == 0 for number in numbers),
            f"an interleaved pipeline of {num_ranks} ranks needs a multiple of {num_ranks} micro-batches in every "
            f"step and has {', '.join(map(str, numbers))}; change {change}, or leave out what interleaves "
            f"(--num-layers-per-virtual-pipeline-stage, --num-virtual-stages-per-pipeline-rank)",
        )

    def _check_schedule(self) -> None:
        by_samples = self.training.train_samples is not None
        optimizer = self.optimizer
        wrong = {
            "--lr-decay-iters": by_samples and optimizer.lr_decay_iters is not None,
            "--lr-warmup-iters": by_samples and optimizer.lr_warmup_iters > 0,
            "--lr-wsd-decay-iters": by_samples and optimizer.lr_wsd_decay_iters is not None,
            "--lr-decay-samples": not by_samples and optimizer.lr_decay_samples is not None,
            "--lr-warmup-samples": not by_samples and optimizer.lr_warmup_samples > 0,
            "--lr-wsd-decay-samples": not by_samples and optimizer.lr_wsd_decay_samples is not None,
        }
        unit = ("--train-samples", "samples") if by_samples else ("--train-iters", "iters")
        for flag, is_wrong in wrong.items():
            require(
                not is_wrong,
                f"{flag} clashes with {unit[0]}: count both in {unit[1]}",
            )

    def _check_spikes(self) -> None:
        checkpoint = self.checkpoint
        if self.training.loss_spike_policy != "rollback":
            return
        require(
            checkpoint.keep_last != 1 or checkpoint.save_retain_interval is not None,
            "--keep-last 1 may leave a checkpoint that was saved amid a spike alone, and --loss-spike-policy rollback "
            "needs one before it: keep 2 or more, or add --save-retain-interval",
        )
        require(
            checkpoint.save_interval is not None and not checkpoint.no_save_optim,
            "--loss-spike-policy rollback goes back to a checkpoint of the run, with its moments: give --save and "
            "--save-interval, without --no-save-optim, or use --loss-spike-policy skip",
        )

    def global_batch_size(self, dp_size: int) -> int:
        """Sequences a step, after any ramp-up."""
        given = self.training.global_batch_size
        return given if given is not None else self.training.micro_batch_size * dp_size

    def num_samples(self, dp_size: int) -> int:
        """Sequences of the run; of --train-samples what makes whole steps of the size after any ramp-up."""
        training, batch = self.training, self.global_batch_size(dp_size)
        if training.train_samples is None:
            return (training.train_iters or 0) * batch
        return training.train_samples // batch * batch


def to_json(config: Config) -> dict[str, Any]:
    """Give the config as plain JSON values, section by section."""
    return dataclasses.asdict(config)


def from_json(values: dict[str, Any]) -> Config:
    """Rebuild a config that `to_json` gave, through a file or not. Fields it lacks take defaults.

    Raises ConfigError for a section or field this version does not know, and for a value of another type.
    """
    sections = {}
    known_sections = {item.name for item in dataclasses.fields(Config)}
    for name, content in values.items():
        require(name in known_sections, f"the saved configuration has an unknown section {name!r}")
        section_class = type(getattr(Config(), name))
        hints = typing.get_type_hints(section_class)
        for key, value in content.items():
            require(
                key in hints, f"the saved configuration has an unknown option {key!r} in {name!r}"
            )
            require(_has_type(value, hints[key]), f"the saved configuration has {key} = {value!r}")
        sections[name] = section_class(
            **{key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        )
    return Config(**sections)


def _has_type(value: Any, hint: Any) -> bool:
    """Say whether a JSON value fits a field's type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_has_type(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
