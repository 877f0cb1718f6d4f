"""The flags that name a model and where it runs, for every tool that predicts, and from them to an engine.

Imports torch only inside functions: `--help` and a user's mistake do not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron import cli
from megatron.errors import CheckpointError, ConfigError, LostPeer, MegatronError
from megatron.logging import get_logger
from megatron.option_field import require
from megatron.options import ModelConfig, ParallelConfig
from megatron.parallel.launch import Launch

if TYPE_CHECKING:
    import torch

    from megatron.inference.engine import Engine
    from megatron.inference.load import Tensors
    from megatron.inference.runner import Runner
    from megatron.model.gpt import GPTModel
    from megatron.parallel.context import ParallelContext
    from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

DTYPES = ("auto", "fp32", "bf16", "fp16")


class StoredModel(Protocol):
    """A model on disk, as `megatron.convert.source` opens it."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def tensors(self) -> Tensors: ...

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class LoadedModel:
    """This process's part of a model, and the processes that have the others."""

    model: GPTModel
    context: ParallelContext

    def runner(self, max_rows: int) -> Runner:
        """Make what predicts for so many sequences at once, with an empty cache."""
        from megatron.inference.runner import Runner

        return Runner(self.model, self.context, max_rows=max_rows)

    def engine(self, tokenizer: Tokenizer, max_rows: int) -> Engine:
        """Make what serves requests, so many samples at once."""
        from megatron.inference.engine import Engine

        return Engine(self.runner(max_rows), tokenizer)


def add_model_flags(parser: argparse.ArgumentParser, *, is_alone: bool = False) -> None:
    """Add --load and its like; but for a tool that runs in one process, how several share a model."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--load",
        type=Path,
        required=True,
        metavar="DIR",
        help="run, checkpoint, or exported folder",
    )
    model.add_argument("--iteration", type=int, help="of a run's checkpoints (default: the latest)")
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of weights and computation (default: what the model has, fp32 on a CPU without bf16)",
    )
    model.add_argument("--tokenizer-file", type=Path, help="tokenizer.json, where --load has none")
    model.add_argument("--gelu-as-tanh", action="store_true", help="as in convert_from_hf.py")
    model.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    if is_alone:
        parser.set_defaults(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
        return
    for name, what in (("tensor", "share each layer"), ("pipeline", "share the stack of layers")):
        flag = f"--{name}-model-parallel-size"
        model.add_argument(flag, type=int, default=1, metavar="N", help=f"processes that {what}")


def check_processes(args: argparse.Namespace, launch: Launch) -> None:
    """Raise ConfigError unless there are as many processes as the model is spread over."""
    sizes = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    require(
        sizes == launch.world_size,
        f"--tensor-model-parallel-size {args.tensor_model_parallel_size} x --pipeline-model-parallel-size "
        f"{args.pipeline_model_parallel_size} is {sizes} processes and there are {launch.world_size}; start so many "
        f"with tools/launch.py --nproc-per-node",
    )


def choose_tokenizer(
    args: argparse.Namespace, own: Tokenizer | None, model_vocab_size: int
) -> Tokenizer:
    """Give the tokenizer that is asked for, or the model's own. Raises ConfigError for one that does not fit."""
    from megatron.options import TokenizerConfig
    from megatron.tokenizer.tokenizer import build_tokenizer

    if args.tokenizer_file is None:
        if own is None:
            raise ConfigError(f"{args.load} has no tokenizer; give --tokenizer-file tokenizer.json")
        return own
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_file=str(args.tokenizer_file)))
    if tokenizer.vocab_size > model_vocab_size:
        raise ConfigError(
            f"--tokenizer-file {args.tokenizer_file} has {tokenizer.vocab_size} ids and the model "
            f"{model_vocab_size}; give the one that it was trained with"
        )
    return tokenizer


def with_one_voice(launch: Launch, work: Callable[[], int]) -> int:
    """Do what all processes do alike, to an exit code: of a mistake that all of them meet, the first one tells."""
    try:
        return work()
    except MegatronError as error:
        if launch.rank == 0 or isinstance(error, LostPeer):
            raise
        return cli.exit_code(error)


def load(args: argparse.Namespace, launch: Launch, source: StoredModel) -> LoadedModel:
    """Join the processes and load this one's part. Collective over all of them."""
    from megatron.inference.load import load_model

    context = _join_processes(args, launch)
    dtype = choose_dtype(args.dtype, source.dtype, context.device)
    try:
        return LoadedModel(load_model(source.model, source.tensors, context, dtype), context)
    except CheckpointError as error:
        if launch.rank > 0:  # the first does not read this part, and would not tell
            logger.warning("%s", error)
        raise


def _join_processes(args: argparse.Namespace, launch: Launch) -> ParallelContext:
    from megatron.parallel.context import ParallelContext, initialize_distributed

    parallel = ParallelConfig(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        distributed_backend="gloo" if args.cpu else "auto",
    )
    device = initialize_distributed(parallel, launch)
    return ParallelContext.create(parallel, launch.world_size, device)


def choose_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Give the dtype to compute in; what is asked for, or the model's own where the device is made for it."""
    import torch

    from megatron.kernels import packed_product, prediction

    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return stored
    obstacles = [ways.obstacle(device, torch.bfloat16) for ways in (prediction, packed_product)]
    return stored if stored == torch.bfloat16 and None in obstacles else torch.float32
