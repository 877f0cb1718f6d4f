"""Measure the writing of text: tokens a second beside transformers' generate, on one folder of weights in one run.

Both write greedily with a cache, from prompts of random ids, and read the prompts in the measured time. The weights are
random: a speed does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.benchmark import peers
from megatron.benchmark.measure import Row, measure, table, timed
from megatron.benchmark.shape import SHAPES, Shape
from megatron.errors import ConfigError
from megatron.options import ModelConfig, ParallelConfig
from megatron.parallel.launch import Launch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EXAMPLES = """\
  a model for a CPU, one text and sixteen at once:
    python tools/bench.py generate --model tiny
    python tools/bench.py generate --model 110m --bf16 --threads 2 --batch-sizes 1 4 16
  on a machine that does other work:
    python tools/bench.py generate --model tiny --threads 1 --cpu-time"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py generate`."""
    parser.add_argument("--model", choices=list(SHAPES), required=True, help="what writes")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 16], metavar="N", help="texts at once"
    )
    parser.add_argument("--prompt-length", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--bf16", action="store_true", help="weights and computation in bf16")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on a CPU")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="with --threads 1: CPU time, which other work on the machine disturbs less",
    )


def run(args: argparse.Namespace) -> None:
    """Make the model, time both, and print their ratio."""
    if min(*args.batch_sizes, args.prompt_length, args.new_tokens, args.rounds) < 1:
        raise ConfigError("--batch-sizes, --prompt-length, --new-tokens and --rounds start at 1")
    if args.cpu_time and args.threads != 1:
        raise ConfigError("--cpu-time needs --threads 1: threads that wait take CPU time")
    shape = SHAPES[args.model]
    if args.prompt_length + args.new_tokens > shape.seq_length:
        raise ConfigError(
            f"--prompt-length {args.prompt_length} and --new-tokens {args.new_tokens} are more than the "
            f"{shape.seq_length} positions of {args.model}"
        )
    if not peers.is_installed("transformers"):
        raise ConfigError("the peer is transformers: pip install transformers")
    import torch
    import torch.distributed as dist

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        _make_folder(Path(folder), shape, dtype)
        try:
            sides = _Sides(Path(folder), dtype)
            rows = [_compare(args, shape, sides, batch_size) for batch_size in args.batch_sizes]
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    print(table([row for part in rows for row in part]))


def _make_folder(folder: Path, shape: Shape, dtype: torch.dtype) -> None:
    """Write a GPTBigCode of a shape with random weights."""
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM
    from transformers.utils import logging

    from megatron.convert.hf_gpt_bigcode import GPT_BIGCODE

    logging.disable_progress_bar()
    model = ModelConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        attention_head_type="multiquery",
        max_position_embeddings=shape.seq_length,
    )
    fields = GPT_BIGCODE.write_fields(model)
    # no end of text: the last id, which random weights would have to choose
    config = GPTBigCodeConfig(
        vocab_size=shape.vocab_size, bos_token_id=None, eos_token_id=None, **fields
    )
    written: Any = GPTBigCodeForCausalLM(config)
    written.to(dtype).save_pretrained(folder)


class _Sides:
    """Ours and the peer's model, from one folder."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        from megatron.convert.source import ModelSource
        from megatron.inference.load import load_model
        from megatron.parallel.context import ParallelContext, initialize_distributed

        device = initialize_distributed(ParallelConfig(), Launch())
        self._context = ParallelContext.create(ParallelConfig(), 1, device)
        source = ModelSource.open(folder)
        self._vocab_size = source.model.vocab_size
        self._model = load_model(source.model, source.tensors, self._context, dtype)
        peer: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._peer = peer.to(device).eval()

    def ours(self, prompts: Tensor, num_tokens: int) -> list[tuple[int, ...]]:
        """Continue prompts int64 [b, s] in an engine that is new."""
        from megatron.inference.engine import Engine
        from megatron.inference.options import SamplingOptions
        from megatron.inference.request import Request
        from megatron.inference.runner import Runner
        from megatron.tokenizer.tokenizer import NullTokenizer

        options = SamplingOptions(max_new_tokens=num_tokens, ignore_eod=True)
        runner = Runner(self._model, self._context, max_rows=len(prompts))
        engine = Engine(runner, NullTokenizer(self._vocab_size - 1))
        ids = prompts.tolist()
        requests = [Request(str(n), tuple(prompt), options) for n, prompt in enumerate(ids)]
        return [done.token_ids for done in engine.run(requests)]

    def theirs(self, prompts: Tensor, num_tokens: int) -> list[tuple[int, ...]]:
        """Continue the same by the peer."""
        import torch

        prompts = prompts.to(self._context.device)
        with torch.inference_mode():
            written = self._peer.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [tuple(row) for row in written[:, prompts.size(1) :].tolist()]


def _compare(args: argparse.Namespace, shape: Shape, sides: _Sides, batch_size: int) -> list[Row]:
    import torch

    generator = torch.Generator().manual_seed(batch_size)
    size = (batch_size, args.prompt_length)
    prompts = torch.randint(0, shape.vocab_size, size, generator=generator)
    clock = time.process_time if args.cpu_time else time.perf_counter
    written = [side(prompts, args.new_tokens) for side in (sides.ours, sides.theirs)]
    num_equal = sum(ours == theirs for ours, theirs in zip(*written, strict=True))

    kind = "CPU time" if args.cpu_time else "wall time"
    name = f"transformers {peers.version('transformers')}"
    return measure(
        f"write, {args.model} in {'bf16' if args.bf16 else 'fp32'}, batch {batch_size}",
        "tokens/s",
        batch_size * args.new_tokens,
        timed(lambda: sides.ours(prompts, args.new_tokens), clock),
        {name: timed(lambda: sides.theirs(prompts, args.new_tokens), clock)},
        rounds=args.rounds,
        note=f"{kind}, threads: {torch.get_num_threads()}, equal texts: {num_equal} of {batch_size}",
    )
