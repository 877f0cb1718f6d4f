"""What decides the numbers of a run, and how two runs differ in it: the table of what a resume compares.

A checkpoint keeps the options in config.json, the schedule and what the files held in state.json. What is not in the
table may change at every start: the layout, how often is validated and saved, who computes what. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron.checkpoint.checksums import read_config, read_state
from megatron.checkpoint.files import damaged
from megatron.checkpoint.layout import STATE_FILE
from megatron.config import Config, from_json
from megatron.data.content import SHOWN
from megatron.optimizer.schedule import Schedule
from megatron.option_field import flag_of
from megatron.options import CheckpointConfig, DataConfig
from megatron.presets import options_of
from megatron.training.contents import CONTENTS, Contents

FINGERPRINT = "fingerprint"  # the key in state.json


@dataclass(frozen=True)
class Fingerprint:
    """All that the numbers of a run are a function of, but for rounding."""

    config: Config
    schedule: Schedule | None  # None of a converted checkpoint, which has weights only
    global_batch_size: int
    contents: Contents | None


def read_fingerprint(folder: Path) -> Fingerprint:
    """Give the fingerprint of the run that wrote a checkpoint. Raises CheckpointError if it is damaged."""
    config, state = from_json(read_config(folder)), read_state(folder)
    if "schedule" not in state:
        return Fingerprint(config, None, 0, None)
    try:
        dp_size = config.parallel.data_parallel_size(state["world_size"])
        batch_size = config.global_batch_size(dp_size)
        contents = Contents.from_json(state[FINGERPRINT])
        return Fingerprint(config, Schedule(**state["schedule"]), batch_size, contents)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"the fingerprint of its run cannot be read ({error!r})"
        raise damaged(folder / STATE_FILE, problem) from error


@dataclass(frozen=True)
class Rule:
    """One row of the table: something that two runs can differ in, and what allows it."""

    name: str
    # How the second run differs from the first, to be read after "the checkpoint …"; None if it does not.
    difference: Callable[[Fingerprint, Fingerprint], str | None]
    remedy: str  # what to do about it
    allowed_by: tuple[str, ...] = ()  # options of CheckpointConfig
    consequence: str = ""  # of going on, from {samples} on

    def is_allowed(self, options: CheckpointConfig) -> bool:
        """Say whether the flags of a run allow this difference."""
        return any(getattr(options, name) for name in self.allowed_by)


# What decides which tokens a sample number stands for and what is asked of them, besides the data itself.
SAMPLE_FIELDS = (
    "seq_length",
    "fim_rate",
    "fim_spm_rate",
    "fim_split_sample",
    "fragment_fim_rate",
    "eod_mask_loss",
    "reset_position_ids",
    "reset_attention_mask",
)
# How a step is computed, besides the schedule: (section, field).
NUMERICS = (
    ("precision", "compute_dtype"),
    ("precision", "fp8_format"),
    ("model", "hidden_dropout"),
    ("model", "attention_dropout"),
    ("optimizer", "adam_beta1"),
    ("optimizer", "adam_beta2"),
    ("optimizer", "adam_eps"),
    ("optimizer", "clip_grad"),
    ("training", "loss_spike_policy"),
    ("training", "loss_spike_threshold"),
    ("training", "loss_spike_window"),
    ("training", "loss_spike_patience"),
)
MOMENTS = (("optimizer", "exp_avg_dtype"), ("optimizer", "exp_avg_sq_dtype"))
# Of the model, what does not decide the shape of the weights. How they are computed may change.
FREE_OF_MODEL = frozenset(
    {
        "hidden_dropout",  # see NUMERICS
        "attention_dropout",
        "init_method_std",
        "recompute_granularity",
        "recompute_modules",
        "recompute_method",
        "recompute_num_layers",
        "attention_backend",
        "deterministic_mode",
        "kernels",
        "logits_chunk_size",
        "make_vocab_size_divisible_by",
        "padded_vocab_size",
        "group_query_attention",
        # said by query_groups, ffn_size and head_dim, which compare what they come to
        "attention_head_type",
        "num_query_groups",
        "ffn_hidden_size",
        "kv_channels",
    }
)


# What several flags come to, by the one that says most of it.
DERIVED = {
    "compute_dtype": "--bf16 or --fp16:",
    "query_groups": "--num-query-groups",
    "ffn_size": "--ffn-hidden-size",
    "head_dim": "--kv-channels",
}


def model_fields(config: Config, *, is_other_run: bool) -> tuple[tuple[str, str], ...]:
    """Name the fields that decide the shape of the weights.

    Another run of the weights may see further: how far decides the shape of learned positions only.
    """
    free = FREE_OF_MODEL
    if is_other_run:
        free |= {"window_size"}
        if config.model.has_rotary_positions:
            free |= {"rotary_base", "max_position_embeddings"}
    names = [item.name for item in dataclasses.fields(config.model) if item.name not in free]
    return tuple(("model", name) for name in (*names, "query_groups", "ffn_size", "head_dim"))


def _fields(*names: tuple[str, str]) -> Callable[[Fingerprint, Fingerprint], str | None]:
    """Make the comparison of some options, given as (section, field). It names all that differ."""

    def difference(old: Fingerprint, new: Fingerprint) -> str | None:
        found: list[str] = []
        for section, name in names:
            before, now = (getattr(one.config, section) for one in (old, new))
            one, other = getattr(before, name), getattr(now, name)
            if one == other or (found and name in DERIVED):  # it may follow from those before it
                continue
            flags = DERIVED | {field.name: flag_of(field) for field, _ in options_of(type(now))}
            flag = flags.get(name, name)  # vocab_size is the tokenizer's
            found.append(f"{flag} {_shown(one)} (this run: {_shown(other)})")
        return f"was trained with {', '.join(found)}" if found else None

    return difference


def _contents(*names: str) -> Callable[[Fingerprint, Fingerprint], str | None]:
    """Make the comparison of some fields of Contents."""

    def difference(old: Fingerprint, new: Fingerprint) -> str | None:
        if old.contents is None or new.contents is None:
            return None
        kept = {name: getattr(old.contents, name) for name in CONTENTS if name not in names}
        return old.contents.difference(dataclasses.replace(new.contents, **kept))

    return difference


def _exclusions(old: Fingerprint, new: Fingerprint) -> str | None:
    ours, theirs = new.config.data, old.config.data
    if sorted(ours.exclude_documents_sha256) == sorted(theirs.exclude_documents_sha256):
        return None
    return f"was trained with {_lists(theirs)}, this run has {_lists(ours)}"


def _lists(data: DataConfig) -> str:
    """Name opt-out lists by path and by the start of their hash."""
    named = zip(data.exclude_documents, data.exclude_documents_sha256, strict=True)
    shown = (f"{path} (sha256 {digest[:SHOWN]}…)" for path, digest in named)
    return (
        f"--exclude-documents {' '.join(shown)}"
        if data.exclude_documents
        else "no --exclude-documents"
    )


def _schedule(old: Fingerprint, new: Fingerprint) -> str | None:
    """Compare learning rate, weight decay and batches, and name the options that make them differ."""
    stored, ours = _resolved_schedule(old), _resolved_schedule(new)
    parts = [
        f"{name} was {stored[name]} and is {ours[name]}"
        for name in ours
        if ours[name] != stored[name]
    ]
    if not parts:
        return None
    before, now = _schedule_options(old.config), _schedule_options(new.config)
    causes = [
        f"{flag} was {_shown(before[flag])} and is {_shown(now[flag])}"
        for flag in now
        if now[flag] != before[flag]
    ] or ["the default of --global-batch-size follows the number of processes"]
    return f"was trained on another schedule: {', '.join(causes)} ({', '.join(parts)})"


def _resolved_schedule(of: Fingerprint) -> dict[str, object]:
    assert of.schedule is not None
    training = of.config.training
    return dataclasses.asdict(of.schedule) | {
        "global_batch_size": of.global_batch_size,
        "rampup_batch_size": training.rampup_batch_size,
    }


def _shown(value: object) -> object:
    return "not set" if value is None else value


def _schedule_options(config: Config) -> dict[str, object]:
    """Give what decides the schedule: {flag: value}."""
    values: dict[str, object] = {
        flag_of(item): getattr(section, item.name)
        for section in (config.training, config.optimizer)
        for item in dataclasses.fields(section)
        if item.name.startswith(("train_", "lr", "min_lr")) or "weight_decay" in item.name
    }
    training = config.training
    return values | {
        "--global-batch-size": training.global_batch_size,
        "--rampup-batch-size": training.rampup_batch_size,
    }


TOKENIZER = Rule(
    "tokenizer",
    _contents("tokenizer"),
    "Give the files that it began with (SAVE/tokenizer has a copy), or --override-tokenizer to go on with the new ones",
    ("override_tokenizer",),
    "what ids mean is up to the new tokenizer from here on",
)
SAME_RUN = (
    Rule(
        "samples",
        _fields(*(("data", name) for name in SAMPLE_FIELDS)),
        "Give the old value, another --save for a new run, or --override-samples to go on with the new value",
        ("override_samples",),
        "samples from {samples} on are made the new way",
    ),
    Rule(
        "train_data",
        _contents("train_data"),
        "Give the old files and weights, or --override-train-data to go on with the new ones",
        ("override_train_data",),
        "samples from {samples} on are drawn from the new blend; of what both have, some may come twice in this epoch",
    ),
    Rule(
        "eval_data",
        _contents("eval_data"),
        "Give the old files and weights, or --override-eval-data to go on with the new ones",
        ("override_eval_data",),
        "losses of validation before and after {samples} samples are of different data",
    ),
    Rule(
        "exclude_documents",
        _exclusions,
        "The order of its samples would change. Give the old lists, or --override-exclude-documents to go on with "
        "the new ones",
        ("override_exclude_documents",),
        "samples from {samples} on are drawn from what is left",
    ),
    Rule(
        "seed",
        _fields(("training", "seed")),
        "The order of its samples would change. Give the old seed, or --no-load-rng to go on with the new one",
        ("no_load_rng",),
        "samples from {samples} on are in the order of the new seed, so that some come twice in this epoch",
    ),
    Rule(
        "numerics",
        _fields(*NUMERICS),
        "Give the old value, or --override-numerics to go on with the new value",
        ("override_numerics",),
        "steps from {samples} samples on are computed the new way",
    ),
    Rule(
        "moments",
        _fields(*MOMENTS),
        "Give the old value, or --no-load-optim to begin with fresh moments, once, in a --save of their own",
        ("no_load_optim",),
        "the optimizer starts afresh",
    ),
    Rule(
        "schedule",
        _schedule,
        "Give the old value, another --save (the example's RUN_DIR) for a new run, --override-opt_param-scheduler to "
        "go on with the new schedule, or --use-checkpoint-opt_param-scheduler with the old",
        ("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"),
        "from {samples} samples on the schedule is the one that was asked for",
    ),
)


def rules_for(config: Config, *, is_other_run: bool, continues: bool) -> tuple[Rule, ...]:
    """Give the table, in the order in which differences are named: causes before what follows from them.

    All runs of the same weights share their shape and what ids mean; one that continues shares all of it.
    """
    shape = model_fields(config, is_other_run=True)
    reach = [name for name in model_fields(config, is_other_run=False) if name not in shape]
    rules = [
        TOKENIZER,
        Rule("model", _fields(*shape), "Give the old value, or another --save for a new run"),
    ]
    if not is_other_run:
        remedy = "Give the old value, or start another run from these weights with --finetune"
        rules.append(Rule("model", _fields(*reach), remedy))
    return (*rules, *(SAME_RUN if continues else ()))
