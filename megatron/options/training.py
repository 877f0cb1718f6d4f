"""Options of the steps: arithmetic, optimizer and schedules, batches and the length of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.option_field import option, require


@dataclass(frozen=True)
class PrecisionConfig:
    """Arithmetic. Master weights and data parallel gradient sums are always fp32."""

    bf16: bool = option(False, "compute in bfloat16")
    fp16: bool = option(False, "compute in float16 with a loss scale")
    fp8_format: Literal["hybrid"] | None = option(
        None,
        "products of the layers in 8 bits: e4m3 forward, e5m2 for gradients of inputs; weight gradients, attention "
        "and the LM head stay in --bf16, which it needs",
    )
    loss_scale: float | None = option(None, "fixed fp16 loss scale (default: dynamic)", above=0.0)
    initial_loss_scale: float = option(2.0**32, "first dynamic loss scale", above=0.0)
    min_loss_scale: float = option(1.0, "lowest dynamic loss scale", above=0.0)
    loss_scale_window: int = option(
        1000, "steps without overflow before the scale doubles", minimum=1
    )
    hysteresis: int = option(
        2, "overflows before the scale halves, counted anew when it doubles", minimum=1
    )
    accumulate_allreduce_grads_in_fp32: bool = option(
        False, "always so here; accepted for Megatron's command lines"
    )
    gradient_accumulation_fusion: Literal["auto", "on", "off"] = option(
        "auto",
        "whether products that make gradients of the layers' weights in --bf16 or --fp16 add them to fp32 sums "
        "themselves, without rounding each micro-batch's; auto does on a GPU, and a CPU is slower with it",
    )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def check(self) -> None:
        require(not (self.bf16 and self.fp16), "--bf16 and --fp16 exclude each other; keep one")
        require(
            self.fp8_format is None or self.bf16,
            f"--fp8-format {self.fp8_format} needs --bf16, in which all else is computed",
        )
        require(
            self.fp16 or self.loss_scale is None,
            "--loss-scale needs --fp16; bf16 and fp32 do not overflow",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedules and clipping. Defaults are Megatron's."""

    optimizer: Literal["adam"] = option("adam", "AdamW, decoupled weight decay")
    lr: float | None = option(None, "highest learning rate", above=0.0)
    min_lr: float = option(0.0, "learning rate after the decay", minimum=0.0)
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = option(
        "linear", "shape of the decay; WSD keeps lr and decays at the end"
    )
    lr_decay_iters: int | None = option(
        None, "iterations to min-lr (default: train-iters)", minimum=1
    )
    lr_decay_samples: int | None = option(
        None, "samples to min-lr (default: train-samples)", minimum=1
    )
    lr_warmup_fraction: float | None = option(
        None, "warmup as a fraction of the decay", minimum=0.0, maximum=1.0
    )
    lr_warmup_iters: int = option(0, "iterations of linear warmup", minimum=0)
    lr_warmup_samples: int = option(0, "samples of linear warmup", minimum=0)
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential"] = option(
        "exponential", "shape of the last part of WSD"
    )
    lr_wsd_decay_iters: int | None = option(None, "iterations of the last part of WSD", minimum=1)
    lr_wsd_decay_samples: int | None = option(None, "samples of the last part of WSD", minimum=1)
    weight_decay: float = option(0.01, "decay of matrices; biases and norms have none", minimum=0.0)
    start_weight_decay: float | None = option(
        None, "first value, with --weight-decay-incr-style", minimum=0.0
    )
    end_weight_decay: float | None = option(
        None, "last value, with --weight-decay-incr-style", minimum=0.0
    )
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = option(
        "constant", "how weight decay moves from start to end"
    )
    adam_beta1: float = option(0.9, "decay of the first moment", minimum=0.0, below=1.0)
    adam_beta2: float = option(0.999, "decay of the second moment", minimum=0.0, below=1.0)
    adam_eps: float = option(1e-8, "added to the root of the second moment", above=0.0)
    use_precision_aware_optimizer: bool = option(False, "let moments be stored in fewer bits")
    exp_avg_dtype: Literal["fp32", "bf16"] = option(
        "fp32", "what the first moment is stored in, with --use-precision-aware-optimizer"
    )
    exp_avg_sq_dtype: Literal["fp32", "bf16"] = option(
        "fp32", "what the second moment is stored in, with --use-precision-aware-optimizer"
    )
    clip_grad: float = option(
        1.0, "largest global gradient norm; 0 turns clipping off", minimum=0.0
    )

    @property
    def moment_dtypes(self) -> tuple[str, str]:
        """torch's names of what both moments are stored in."""
        names = {"fp32": "float32", "bf16": "bfloat16"}
        return names[self.exp_avg_dtype], names[self.exp_avg_sq_dtype]

    def check(self) -> None:
        require(
            self.use_precision_aware_optimizer
            or (self.exp_avg_dtype == "fp32" and self.exp_avg_sq_dtype == "fp32"),
            f"--exp-avg-dtype {self.exp_avg_dtype} and --exp-avg-sq-dtype {self.exp_avg_sq_dtype}: "
            "moments are fp32 without --use-precision-aware-optimizer; add it or leave these out",
        )
        require(self.lr is not None, "--lr is not set; give the highest learning rate")
        assert self.lr is not None
        require(self.min_lr <= self.lr, f"--min-lr {self.min_lr} is above --lr {self.lr}")
        require(
            self.lr_warmup_fraction is None
            or (self.lr_warmup_iters == 0 and self.lr_warmup_samples == 0),
            "--lr-warmup-fraction clashes with --lr-warmup-iters/--lr-warmup-samples; keep one",
        )
        require(
            self.lr_decay_style != "WSD"
            or self.lr_wsd_decay_iters is not None
            or self.lr_wsd_decay_samples is not None,
            "--lr-decay-style WSD needs --lr-wsd-decay-iters (or -samples)",
        )
        bounds = (self.start_weight_decay, self.end_weight_decay)
        require(
            (self.weight_decay_incr_style == "constant") == (bounds == (None, None))
            and (None not in bounds or bounds == (None, None)),
            "--start-weight-decay and --end-weight-decay go together with "
            "--weight-decay-incr-style linear or cosine",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """Batches, length of the run, and what happens at which interval."""

    micro_batch_size: int = option(1, "sequences a process handles at once", minimum=1)
    global_batch_size: int | None = option(
        None, "sequences a step (default: micro batch x data parallel size)", minimum=1
    )
    rampup_batch_size: tuple[int, ...] | None = option(
        None, "start, increment, samples: grow the global batch", metavar="N"
    )
    train_iters: int | None = option(None, "steps of the run", minimum=1)
    train_samples: int | None = option(
        None,
        "sequences of the run, instead of steps; less than a batch of them at the end is left out",
        minimum=1,
    )
    eval_interval: int = option(1000, "steps between validations", minimum=1)
    eval_iters: int = option(100, "batches of one validation; 0 turns it off", minimum=0)
    exit_interval: int | None = option(
        None, "save and leave after a multiple of this many steps", minimum=1
    )
    exit_duration_in_mins: float | None = option(
        None, "save and leave this many minutes after the start of the process", above=0.0
    )
    exit_signal_handler: bool = option(
        False, "SIGTERM saves and leaves; always so here, accepted for Megatron's command lines"
    )
    loss_spike_policy: Literal["none", "skip", "rollback"] = option(
        "none",
        "what becomes of a step whose loss or gradient norm is above the limit that recent steps set: none trains on "
        "it, skip leaves the weights as they were, rollback does too and, when such steps do not end, goes back to a "
        "checkpoint and skips the samples from there on",
    )
    loss_spike_threshold: float = option(
        6.0, "how many robust standard deviations above their median the limit lies", above=0.0
    )
    loss_spike_window: int = option(
        128, "recent steps that set the limit; there is none before half as many", minimum=4
    )
    loss_spike_patience: int = option(
        10,
        "steps lost in a row, as spikes or not finite, after which rollback goes back",
        minimum=1,
        maximum=15,
    )
    check_weight_hash_across_dp_replicas_interval: int | None = option(
        None,
        "steps between comparisons, bit by bit, of the weights and moments that several processes hold a copy of; "
        "before every save too; a copy that differs ends the run",
        minimum=1,
    )
    watchdog_timeout_in_secs: float | None = option(
        None,
        "seconds without a sign of life after which a run names who hangs and ends; ten times as many for starting, "
        "loading, saving and first steps; 0: never (default: ten times the longest of recent steps, at least 120)",
        minimum=0.0,
    )
    seed: int = option(1234, "every random number derives from it")

    def check(self) -> None:
        require(
            (self.train_iters is None) != (self.train_samples is None),
            "give the length of the run once: --train-iters or --train-samples",
        )
        require(
            self.loss_spike_policy != "rollback"
            or 2 * self.loss_spike_patience < self.loss_spike_window,
            f"--loss-spike-patience {self.loss_spike_patience} has to be below half of --loss-spike-window "
            f"{self.loss_spike_window}: spikes that are half of the window set its limit",
        )
        if self.rampup_batch_size is not None:
            require(
                len(self.rampup_batch_size) == 3,
                "--rampup-batch-size takes three numbers: start, increment, samples",
            )
            require(
                self.train_samples is not None,
                "--rampup-batch-size counts samples: use --train-samples, not --train-iters",
            )
            require(
                self.global_batch_size is not None,
                "--rampup-batch-size needs --global-batch-size, the batch it grows to",
            )
