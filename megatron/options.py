"""Every option of a run: typed, frozen, one field a flag.

The flags are made from the fields by `megatron.cli`; the checks of one section stand beside its fields,
those that span sections are `Config`'s. Nothing here is written back after construction, and nothing
below this layer sees more than the section it needs. Knows nothing of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron.errors import ConfigError
from megatron.option_field import derived, option, require


def pad_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Round the vocabulary up as Megatron does: to a multiple of divisible_by x tensor_parallel_size."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


def read_position_embedding_type(text: str) -> str:
    """Take BigCode's names of position embeddings for Megatron's; any other is left as it is."""
    return {"rotary": "rope", "absolute": "learned_absolute"}.get(text, text)


def read_window(text: str) -> int:
    """Read --window-size: the tokens that one sees, or Megatron's pair of those seen on either side."""
    numbers = text.strip("()[] ").split(",")
    try:
        sizes = [int(number) for number in numbers]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 2 and sizes[0] >= 0 and sizes[1] == 0:
        return sizes[0] + 1
    raise ConfigError(
        f"--window-size {text}: give the tokens that one attends to, itself included (4096, Hugging Face's "
        f"sliding_window), or Megatron's pair of those before and after it (4095,0); none after, since "
        f"attention is causal; leave the option out to attend to all before"
    )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. Defaults are Megatron's."""

    num_layers: int = option(0, "transformer layers", minimum=1)
    hidden_size: int = option(0, "width of the residual stream", minimum=1)
    ffn_hidden_size: int | None = option(
        None, "width of the MLP (default 4 x hidden size)", minimum=1
    )
    num_attention_heads: int = option(0, "query heads", minimum=1)
    kv_channels: int | None = option(
        None, "width of a head (default hidden size / heads)", minimum=1
    )
    attention_head_type: Literal["multihead", "multiquery"] = option(
        "multihead", "one key/value head for each query head, or one for all of them"
    )
    num_query_groups: int | None = option(
        None,
        "key/value heads, each shared by heads/groups query heads (grouped attention)",
        minimum=1,
    )
    group_query_attention: bool = option(False, "with --num-query-groups, as in Megatron-LM")
    position_embedding_type: Literal["learned_absolute", "rope"] = option(
        "learned_absolute",
        "a learned vector for each position, added to the embedding, or rotary embeddings of queries and keys "
        "(BigCode's names absolute and rotary are taken too)",
        parse=read_position_embedding_type,
    )
    max_position_embeddings: int = option(
        0, "positions, learned or rotary; at least the sequence length", minimum=1
    )
    rotary_base: float = option(
        10000.0, "with rope: the longest wavelength is about 2 pi times this", above=0.0
    )
    window_size: int | None = option(
        None,
        "sliding window: a token attends to itself and the N - 1 before it (Hugging Face's sliding_window); "
        "Megatron's pair N-1,0 says the same",
        metavar="N",
        parse=read_window,
        minimum=1,
    )
    layernorm_epsilon: float = option(1e-5, "added to the variance in LayerNorm", above=0.0)
    hidden_dropout: float = option(
        0.1, "dropout after embedding, attention and MLP", minimum=0.0, below=1.0
    )
    attention_dropout: float = option(
        0.1, "dropout of attention probabilities", minimum=0.0, below=1.0
    )
    init_method_std: float = option(
        0.02, "std of initial weights; outputs use std/sqrt(2 layers)", above=0.0
    )
    untie_embeddings_and_output_weights: bool = option(False, "give the LM head its own weight")
    disable_bias_linear: bool = option(False, "no bias in linear layers")
    recompute_granularity: Literal["selective", "full"] | None = option(
        None, "recompute in backward: attention only, or whole layers"
    )
    recompute_method: Literal["uniform", "block"] | None = option(
        None,
        "with full: every layer in chunks (uniform), or only the first ones of a stage (block)",
    )
    recompute_num_layers: int | None = option(
        None, "with full: layers a chunk (uniform), or layers recomputed (block)", minimum=1
    )
    attention_backend: Literal["auto", "flash", "sdpa", "blocked", "explicit"] = option(
        "auto", "attention kernel; auto takes the fastest that can run and logs why"
    )
    make_vocab_size_divisible_by: int = option(
        128, "vocabulary is padded to this times the tensor parallel size", minimum=1
    )
    vocab_size: int = derived(0)  # tokens of the tokenizer; set by whoever loads it
    padded_vocab_size: int = derived(0)  # rows of the embedding; pad_vocab_size()

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def has_rotary_positions(self) -> bool:
        return self.position_embedding_type == "rope"

    def window_within(self, seq_length: int) -> int | None:
        """Give --window-size where it hides any token of a sequence, else None."""
        is_narrow = self.window_size is not None and self.window_size < seq_length
        return self.window_size if is_narrow else None

    @property
    def ffn_size(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def query_groups(self) -> int:
        """Key/value heads: 1 for multi-query, one for each head for multi-head attention."""
        if self.num_query_groups is not None:
            return self.num_query_groups
        return 1 if self.attention_head_type == "multiquery" else self.num_attention_heads

    def check(self) -> None:
        require(
            self.kv_channels is not None or self.hidden_size % self.num_attention_heads == 0,
            f"--hidden-size {self.hidden_size} is not divisible by --num-attention-heads "
            f"{self.num_attention_heads}; change one of them or give --kv-channels",
        )
        require(
            self.num_attention_heads % self.query_groups == 0,
            f"--num-query-groups {self.query_groups} does not divide --num-attention-heads "
            f"{self.num_attention_heads}",
        )
        require(
            self.attention_head_type == "multihead" or self.num_query_groups in (None, 1),
            f"--attention-head-type multiquery has one key/value head, and --num-query-groups asks "
            f"for {self.num_query_groups}; leave one of them out",
        )
        require(
            not self.group_query_attention or self.num_query_groups is not None,
            "--group-query-attention needs --num-query-groups",
        )
        require(
            not self.has_rotary_positions or self.head_dim % 2 == 0,
            f"--position-embedding-type rope turns pairs of channels, and heads are {self.head_dim} wide; give an "
            f"even --kv-channels (default: --hidden-size / --num-attention-heads)",
        )
        require(
            self.has_rotary_positions or self.rotary_base == 10000.0,
            f"--rotary-base {self.rotary_base:g} needs --position-embedding-type rope",
        )
        require(
            self.recompute_granularity == "full"
            or (self.recompute_method is None and self.recompute_num_layers is None),
            "--recompute-method and --recompute-num-layers need --recompute-granularity full",
        )

    def check_tensor_parallel(self, tp_size: int) -> None:
        """Raise ConfigError unless heads and MLP split evenly over tp_size processes."""
        for flag, size in (
            ("--num-attention-heads", self.num_attention_heads),
            ("--ffn-hidden-size", self.ffn_size),
        ):
            require(
                size % tp_size == 0,
                f"--tensor-model-parallel-size {tp_size} does not divide {flag} {size}; "
                f"change one of them",
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is laid over processes. Data parallel size follows from the world size."""

    tensor_model_parallel_size: int = option(1, "processes that share each layer", minimum=1)
    pipeline_model_parallel_size: int = option(
        1, "processes that share the stack of layers", minimum=1
    )
    context_parallel_size: int = option(
        1, "processes that share each sequence, for long ones", minimum=1
    )
    pipeline_schedule: Literal["auto", "1f1b", "interleaved", "zbv", "dualpipev"] = option(
        "auto",
        "order of the passes of a pipeline: zbv and dualpipev lay two stages on each rank, in a V; "
        "auto is interleaved where chunks are asked for, else 1f1b",
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None, "interleave the pipeline: layers of one chunk", minimum=1
    )
    num_virtual_stages_per_pipeline_rank: int | None = option(
        None,
        "interleave the pipeline: chunks of each stage, which may be of uneven stages",
        minimum=1,
    )
    decoder_first_pipeline_num_layers: int | None = option(
        None, "layers of the first stage; the other stages share the rest evenly", minimum=1
    )
    decoder_last_pipeline_num_layers: int | None = option(
        None, "layers of the last stage; the other stages share the rest evenly", minimum=1
    )
    account_for_embedding_in_pipeline_split: bool = option(
        False, "split as if the embedding were a layer: the first stage holds one less"
    )
    account_for_loss_in_pipeline_split: bool = option(
        False, "split as if the LM head and the loss were a layer: the last stage holds one less"
    )
    sequence_parallel: bool = option(
        False, "shard LayerNorm, dropout and residuals over the sequence within a tensor group"
    )
    use_distributed_optimizer: bool = option(
        False, "shard optimizer state and gradients over data parallel processes"
    )
    num_distributed_optimizer_instances: int = option(
        1,
        "with --use-distributed-optimizer: copies of the optimizer state, each sharded over its part of the data "
        "(and context) parallel processes, such as a node; gradients are summed over all",
        minimum=1,
    )
    distributed_backend: Literal["auto", "gloo", "nccl"] = option(
        "auto", "nccl with a GPU for each process, gloo without"
    )
    distributed_timeout_minutes: float = option(
        10.0, "a collective that waits longer fails", above=0.0
    )

    @property
    def has_stages_in_v(self) -> bool:
        """Rank r holds the stages r and 2 x ranks - 1 - r: the first rank has both ends of the model."""
        return self.pipeline_schedule in ("zbv", "dualpipev")

    @property
    def model_parallel_size(self) -> int:
        """Processes that read the same samples."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def sequence_divisor(self) -> int:
        """What the sequence length must be a multiple of: pieces of one length for all that share it."""
        pieces = 2 if self.context_parallel_size > 1 else 1  # chunks of a context parallel process
        if self.sequence_parallel:
            pieces = math.lcm(pieces, self.tensor_model_parallel_size)
        return pieces * self.context_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of processes that read different samples; ConfigError if the layout does not fit."""
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        cp, size = self.context_parallel_size, self.model_parallel_size
        factors = f"--tensor-model-parallel-size {tp} x --pipeline-model-parallel-size {pp}"
        if cp > 1:
            factors += f" x --context-parallel-size {cp}"
        require(
            world_size >= size,
            f"{factors} needs {size} processes and there are {world_size}; start more (torchrun's "
            f"--nproc-per-node, the example's GPUS_PER_NODE) or lower one of them",
        )
        require(
            world_size % size == 0,
            f"{world_size} processes cannot be split into groups of {size} ({factors}); "
            f"use a multiple of {size}",
        )
        return world_size // size

    def gradient_sizes(self, world_size: int) -> tuple[int, int]:
        """Processes that hold the same weights as (copies of the optimizer state, processes each is sharded over).

        They are the data and the context parallel ones, whose gradients are summed.
        """
        num_processes = self.data_parallel_size(world_size) * self.context_parallel_size
        if not self.use_distributed_optimizer:
            return num_processes, 1
        copies = self.num_distributed_optimizer_instances
        kind = "data parallel" if self.context_parallel_size == 1 else "data x context parallel"
        require(
            num_processes % copies == 0,
            f"--num-distributed-optimizer-instances {copies} does not divide the {num_processes} {kind} "
            f"processes; give a divisor of {num_processes}",
        )
        return copies, num_processes // copies

    def check(self, world_size: int) -> None:
        require(
            self.use_distributed_optimizer or self.num_distributed_optimizer_instances == 1,
            "--num-distributed-optimizer-instances needs --use-distributed-optimizer: without it every "
            "data parallel process holds a copy",
        )
        self.gradient_sizes(world_size)


@dataclass(frozen=True)
class PrecisionConfig:
    """Arithmetic. Master weights, optimizer state and data parallel gradient sums are always fp32."""

    bf16: bool = option(False, "compute in bfloat16")
    fp16: bool = option(False, "compute in float16 with a loss scale")
    loss_scale: float | None = option(None, "fixed fp16 loss scale (default: dynamic)", above=0.0)
    initial_loss_scale: float = option(2.0**32, "first dynamic loss scale", above=0.0)
    min_loss_scale: float = option(1.0, "lowest dynamic loss scale", above=0.0)
    loss_scale_window: int = option(
        1000, "steps without overflow before the scale doubles", minimum=1
    )
    hysteresis: int = option(2, "overflows in a row before the scale halves", minimum=1)
    accumulate_allreduce_grads_in_fp32: bool = option(
        False, "always so here; accepted for Megatron's command lines"
    )

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def check(self) -> None:
        require(not (self.bf16 and self.fp16), "--bf16 and --fp16 exclude each other; keep one")
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
    clip_grad: float = option(
        1.0, "largest global gradient norm; 0 turns clipping off", minimum=0.0
    )

    def check(self) -> None:
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
    train_samples: int | None = option(None, "sequences of the run, instead of steps", minimum=1)
    eval_interval: int = option(1000, "steps between validations", minimum=1)
    eval_iters: int = option(100, "batches of one validation; 0 turns it off", minimum=0)
    exit_interval: int | None = option(
        None, "save and leave after a multiple of this many steps", minimum=1
    )
    exit_duration_in_mins: float | None = option(
        None, "save and leave after this many minutes", above=0.0
    )
    exit_signal_handler: bool = option(
        False, "SIGTERM saves and leaves; always so here, accepted for Megatron's command lines"
    )
    seed: int = option(1234, "every random number derives from it")

    def check(self) -> None:
        require(
            (self.train_iters is None) != (self.train_samples is None),
            "give the length of the run once: --train-iters or --train-samples",
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


@dataclass(frozen=True)
class DataConfig:
    """What is read, in which proportions, and how samples are made of it."""

    seq_length: int = option(0, "tokens of a sequence", minimum=1)
    data_path: tuple[str, ...] = option(
        (), "one prefix, or weight prefix weight prefix …; shared by --split", metavar="W PREFIX"
    )
    split: str | None = option(None, "train, validation, test parts of --data-path, as 969,30,1")
    train_data_path: tuple[str, ...] = option(
        (), "as --data-path, training only", metavar="W PREFIX"
    )
    valid_data_path: tuple[str, ...] = option(
        (), "as --data-path, validation only", metavar="W PREFIX"
    )
    test_data_path: tuple[str, ...] = option((), "as --data-path, test only", metavar="W PREFIX")
    train_weighted_split_paths: tuple[str, ...] = option(
        (), '"NAME: W START:END PREFIX, W START:END PREFIX"', metavar="GROUP"
    )
    valid_weighted_split_paths: tuple[str, ...] = option(
        (), "one or more such groups, each validated by its name", metavar="GROUP"
    )
    test_weighted_split_paths: tuple[str, ...] = option(
        (), "one or more such groups", metavar="GROUP"
    )
    train_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    valid_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    test_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    exclude_documents: tuple[str, ...] = option(
        (),
        'opt-out lists: JSON lines such as {"repo": "octocat/hello"}; such documents are not read',
        metavar="FILE",
    )
    exclude_documents_skip: tuple[str, ...] = option(
        (),
        "token files that lack the fields of the opt-out lists and are read all the same",
        metavar="PREFIX",
    )
    exclude_documents_sha256: tuple[str, ...] = derived(())  # of each list; set by whoever opens it
    num_workers: int = option(
        2, "loader processes for training data; 0 loads in the main one", minimum=0
    )
    valid_num_workers: int = option(0, "loader processes for validation data", minimum=0)
    dataloader_type: Literal["single"] = option(
        "single", "samples in the order of their index, which is already a permutation"
    )
    eod_mask_loss: bool = option(False, "no loss where the model reads an end-of-document token")
    reset_position_ids: bool = option(False, "positions start at 0 again in each document")
    reset_attention_mask: bool = option(
        False, "no token attends to another document of its sample; costs less, too"
    )
    fim_rate: float = option(
        0.0, "part of the documents that are made fill-in-the-middle", minimum=0.0, maximum=1.0
    )
    fim_spm_rate: float = option(
        0.5, "part of those in suffix-prefix-middle order", minimum=0.0, maximum=1.0
    )
    fim_split_sample: str | None = option(
        None, "token that separates the files of a repository; FIM then works file by file"
    )
    fragment_fim_rate: float = option(
        0.5, "with --fim-split-sample: part of the files permuted", minimum=0.0, maximum=1.0
    )
    eval_fim: Literal["both", "with", "without"] = option(
        "both",
        "with --fim-rate: validate and test each set NAME without FIM, with it as NAME+fim, or both",
    )

    def check(self) -> None:
        require(
            bool(self.exclude_documents) or not self.exclude_documents_skip,
            "--exclude-documents-skip says which token files --exclude-documents may pass over; give both",
        )
        modes = [
            "--data-path" if self.data_path else "",
            "--train-data-path" if self.train_data_path else "",
            "--train-weighted-split-paths"
            if self.train_weighted_split_paths or self.train_weighted_split_paths_path
            else "",
        ]
        given = [mode for mode in modes if mode]
        require(bool(given), "no training data: give --data-path PREFIX (without .bin)")
        require(
            len(given) == 1,
            f"{' and '.join(given)} both name training data; keep one",
        )
        require(
            self.split is None or bool(self.data_path),
            "--split cuts --data-path; the other data options name each set themselves",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer, from which files."""

    tokenizer_type: Literal[
        "TokenizerFromFile",
        "TokenizerFromFileWithFIM",
        "HuggingFaceTokenizer",
        "GPT2BPETokenizer",
        "GPT2BPETokenizerWithFIM",
        "SentencePieceTokenizer",
        "NullTokenizer",
    ] = option("TokenizerFromFile", "how text becomes ids")
    tokenizer_file: str | None = option(None, "tokenizer.json, for TokenizerFromFile")
    tokenizer_model: str | None = option(
        None, "a local folder (HuggingFaceTokenizer) or a .model file (SentencePieceTokenizer)"
    )
    vocab_file: str | None = option(None, "vocab.json, for GPT2BPETokenizer")
    merge_file: str | None = option(None, "merges.txt, for GPT2BPETokenizer")
    vocab_size: int | None = option(None, "number of ids, for NullTokenizer")


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
    use_checkpoint_opt_param_scheduler: bool = option(
        False, "schedule from the checkpoint", flag="--use-checkpoint-opt_param-scheduler"
    )
    exit_on_missing_checkpoint: bool = option(
        False, "an empty --load is an error rather than a fresh start"
    )

    def check(self) -> None:
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
