"""`bench.py kernels`: each operation of a training step by each of its implementations, at a model's size, on a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import cli
from megatron.benchmark.output import write_json
from megatron.benchmark.shape import SHAPES
from megatron.errors import ConfigError
from megatron.options import ModelConfig, pad_vocab_size

if TYPE_CHECKING:
    import torch

    from megatron.benchmark.kernel_cases import Size
    from megatron.benchmark.kernel_timer import Case, Result

EXAMPLES = """\
  all, at the size of StarCoder's 1B, 4 samples of 8,192 tokens:
    python tools/bench.py kernels --model 1b --json kernels.json
  attention alone by two backends, at twice the length:
    python tools/bench.py kernels --only attention --attention-backends cudnn flash --seq-length 16384 \\
      --micro-batch-size 2"""
SECTIONS = ("copy", "products", "attention", "operations", "cross-entropy", "optimizer")
FORMAT = 1  # of --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py kernels`."""
    backends = [name for name in _attention_backends() if name != "auto"]
    parser.add_argument("--model", choices=list(SHAPES), default="1b", help="(default: 1b)")
    parser.add_argument("--seq-length", type=int, default=8192, metavar="N", help="(default: 8192)")
    parser.add_argument("--micro-batch-size", type=int, default=4, metavar="N", help="(default: 4)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="some of its rows")
    parser.add_argument("--attention-backends", nargs="+", choices=backends, default=backends)
    parser.add_argument(
        "--document-length", type=int, default=1024, metavar="N", help="(default: 1024)"
    )
    parser.add_argument(
        "--no-compiled", action="store_true", help="without torch.compile, which takes its time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")


def _attention_backends() -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(ModelConfig)["attention_backend"])


def run(args: argparse.Namespace) -> None:
    """Time what is asked for on this machine's first GPU, and print the table."""
    if min(args.seq_length, args.micro_batch_size, args.document_length) < 1:
        raise ConfigError("--seq-length, --micro-batch-size and --document-length must be above 0")
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("kernels are timed on a GPU, and torch sees none here")
    from megatron.benchmark.kernel_timer import table

    device = torch.device("cuda", 0)
    results = measure(args, device)
    name = torch.cuda.get_device_name(device)
    size = f"{args.model}, {args.micro_batch_size} samples of {args.seq_length:,} tokens, bfloat16"
    print(f"{name}, torch {torch.__version__}; {size}\n\n{table(results)}")
    report = {
        "format": FORMAT,
        "device": name,
        "torch": torch.__version__,
        "model": args.model,
        "seq_length": args.seq_length,
        "micro_batch_size": args.micro_batch_size,
        "rows": [_row(result) for result in results],
    }
    write_json("--json", args.json, report)


def measure(args: argparse.Namespace, device: torch.device) -> list[Result]:
    """Time the sections that are asked for, and say on stderr what is done."""
    import torch

    from megatron.benchmark.kernel_cases import Size
    from megatron.benchmark.kernel_timer import time_cases

    torch.manual_seed(0)
    torch.cuda.set_device(device) if device.type == "cuda" else None
    size = Size(
        model_of(args.model, args.seq_length),
        args.seq_length,
        args.micro_batch_size,
        torch.bfloat16,
        device,
    )
    results = []
    for result in time_cases(list(cases(args, size)), device):
        both = f", with backward {result.both:.3f}" if result.both else ""
        ms = result.obstacle or f"{result.forward:.3f} ms{both}"
        print(result.case.what, result.case.implementation, ms, file=sys.stderr, flush=True)
        results.append(result)
    return results


def cases(args: argparse.Namespace, size: Size) -> Iterator[Case]:
    """Give the cases of the sections that are asked for."""
    from megatron.benchmark import kernel_cases as known
    from megatron.benchmark.optimizer_cases import optimizer_cases
    from megatron.kernels.operation_choice import IMPLEMENTATIONS

    implementations = [
        name for name in IMPLEMENTATIONS if not (args.no_compiled and name == "compiled")
    ]
    sections: dict[str, Callable[[], Iterator[Case] | Sequence[Case]]] = {
        "copy": lambda: [known.copy_case(size)],
        "products": lambda: known.product_cases(size),
        "attention": lambda: known.attention_cases(
            size, args.attention_backends, args.document_length
        ),
        "operations": lambda: known.operation_cases(size, implementations),
        "cross-entropy": lambda: known.torch_cross_entropy_cases(size, not args.no_compiled),
        "optimizer": lambda: optimizer_cases(size),
    }
    for name in args.only or SECTIONS:
        yield from sections[name]()


def model_of(name: str, seq_length: int) -> ModelConfig:
    """Give a shape as the options of a model, its vocabulary filled in."""
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    shape = SHAPES[name]
    model = cli.config_from(cli.parse_known(parser, shape.flags())).model
    return dataclasses.replace(
        model,
        max_position_embeddings=seq_length,
        vocab_size=shape.vocab_size,
        padded_vocab_size=pad_vocab_size(shape.vocab_size, model.make_vocab_size_divisible_by, 1),
    )


def _row(result: Result) -> dict[str, object]:
    forward_rate, both_rate = result.rates()
    return {
        "what": result.case.what,
        "by": result.case.implementation,
        "forward_ms": result.forward,
        "forward_backward_ms": result.both,
        "unit": f"T{result.case.work.unit}/s",
        "forward_rate": forward_rate,
        "forward_backward_rate": both_rate,
        "obstacle": result.obstacle,
    }
