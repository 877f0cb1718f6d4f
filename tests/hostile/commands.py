"""Uses of the tools on the base files, and what is looked at when a tool says that all is well."""

import functools
import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from megatron import cli
from megatron.data.indexed_dataset import idx_path
from megatron.data.verify_dataset import verify_dataset
from megatron.errors import MegatronError
from megatron.training.inputs import open_inputs

TOOLS = Path(__file__).parents[2] / "tools"
TEXT = "def f(x):\n    return x + 12  # é\n"
Check = Callable[[], str | None]


def nothing() -> None:
    """Look at nothing."""


@dataclass(frozen=True)
class Command:
    """One use of a tool, and what to look at if it says that all is well."""

    tool: str
    argv: Sequence[str]
    check: Check = nothing


@functools.cache
def load_tool(name: str) -> ModuleType:
    """Import a file of tools/."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def call_tool(name: str) -> Callable[[Sequence[str]], int | None]:
    """Give the main of a tool; those that take no arguments read sys.argv, which the guard sets."""
    main = load_tool(name).main
    takes_argv = main.__code__.co_argcount > 0

    def call(argv: Sequence[str]) -> int | None:
        return main(argv) if takes_argv else main()

    call.__module__ = name
    return call


def run_flags(
    folder: Path, extra: Sequence[str] = (), *, data: Sequence[str] | None = None
) -> list[str]:
    """Give the flags of a small run on the base."""
    data = ["--train-data-path", f"{folder}/py_text_document"] if data is None else data
    flags = "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32"
    flags += f" --train-iters 4 --lr 1e-3 --fim-rate 0.5 --tokenizer-file {folder}/tokenizer.json"
    return [*flags.split(), *data, *extra]


def dry_run(flags: Sequence[str]) -> Command:
    """Check a run and read some samples of what it accepts."""
    return Command("pretrain_gpt", ["--dry-run", *flags], lambda: read_samples(flags))


def read_samples(flags: Sequence[str]) -> str | None:
    """Read samples as training does: each is either whole or an error of ours."""
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    config = cli.config_from(cli.parse_known(parser, flags))
    inputs = open_inputs(config, config.parallel.model_parallel_size)
    if config.data.seq_length > 4096:
        return None
    for dataset in (inputs.datasets.train, *inputs.datasets.valid.values()):
        for index in (*range(40), 10**6):
            try:
                sample = dataset[index]
            except MegatronError:
                return None
            tokens = np.concatenate([sample["tokens"], sample["labels"]])
            if len(tokens) != 2 * config.data.seq_length:
                return f"sample {index} has {len(tokens)} tokens"
    return None


def verify(folder: Path, check: Check = nothing) -> Command:
    return Command(
        "verify",
        ["data", f"{folder}/py_text_document", "--tokenizer-file", f"{folder}/tokenizer.json"],
        check,
    )


def merge(folder: Path) -> Command:
    name = f"{folder}/py_text_document"
    out = f"{folder}/out_text_document"
    return Command("merge_datasets", ["--input", name, "--output-prefix", out], lambda: whole(out))


def whole(prefix: str) -> str | None:
    """Say what is wrong with a dataset that a tool wrote."""
    if not idx_path(prefix).exists():
        return f"{prefix} was not written"
    return "; ".join(verify_dataset(prefix).findings) or None


def preprocess(
    folder: Path, file: str, tokenizer: Sequence[str] = (), extra: Sequence[str] = ()
) -> Command:
    tokenizer = tokenizer or ["--tokenizer-file", f"{folder}/tokenizer.json"]
    argv = ["--input", f"{folder}/{file}", "--output-prefix", f"{folder}/new", *tokenizer, *extra]
    return Command("preprocess_data", argv, lambda: whole(f"{folder}/new_text_document"))


def rewrite(
    path: Path, mutate: Callable[[random.Random, bytes], bytes], draw: random.Random
) -> None:
    path.write_bytes(mutate(draw, path.read_bytes()))
