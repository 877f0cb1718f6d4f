"""`bench.py train`: the run that tools/pretrain_gpt.py would start, its steps timed, on data that is there or made.

Only options and the order of things stand here; torch is imported once both are known to be right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import cli, logging
from megatron.benchmark.corpus import prepare_corpus
from megatron.benchmark.output import write_json
from megatron.benchmark.shape import SHAPES, Shape
from megatron.config import Config
from megatron.errors import ConfigError, TrainingError
from megatron.parallel.launch import Launch
from megatron.training.inputs import Inputs, open_inputs
from megatron.training.start import plan_start

if TYPE_CHECKING:
    from megatron.parallel.context import ParallelContext
    from megatron.training.run import Run

EXAMPLES = """\
  StarCoder's 1B on a GPU, with its recipe's flags; documents of a sample do not see each other:
    python tools/bench.py train --model 1b --documents --json 1b.json
  the same where there is little time on the GPU: data that another machine made, no dropout, a trace of 3 steps
    python tools/bench.py train --model 1b --data-folder runs/bench --prepare
    python tools/bench.py train --model 1b --data-folder runs/bench --steps 20 --warmup 5 --profile runs/trace \\
      -- --hidden-dropout 0 --attention-dropout 0
  a size for a CPU beside Hugging Face's GPTBigCode, eager and compiled, in turns:
    python tools/bench.py train --model tiny --bf16 --threads 2 --peer --peer-compiled

what follows -- are flags of tools/pretrain_gpt.py; they win. Under torchrun every process runs this command."""
FORMAT = 1  # of --json
PART_STEPS = 5  # that are taken apart
PROFILE_STEPS = 3
LR_WARMUP_ITERS = 100  # so that the loss shows that it learns; rates do not change speeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py train`."""
    parser.add_argument("--model", choices=list(SHAPES), required=True, help="what is trained")
    parser.add_argument("--seq-length", type=int, metavar="N", help="tokens of a sample")
    parser.add_argument("--micro-batch-size", type=int, metavar="N", help="samples at once")
    parser.add_argument("--global-batch-size", type=int, metavar="N", help="samples of a step")
    parser.add_argument("--steps", type=int, default=100, help="that are timed (default: 100)")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them (default: 10)")
    parser.add_argument(
        "--documents", action="store_true", help="no token sees another document of its sample"
    )
    parser.add_argument("--bf16", action="store_true", help="for tiny and 110m; others always")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on a CPU")
    data = parser.add_argument_group("data", "By default Python source of this machine.")
    data.add_argument("--data-path", nargs="+", metavar="PREFIX", help="token files to read")
    data.add_argument("--tokenizer-file", metavar="FILE", help="with which they were made")
    data.add_argument(
        "--data-folder",
        type=Path,
        metavar="DIR",
        help="where the data that is made is kept, or lies already; shared by all nodes",
    )
    data.add_argument("--prepare", action="store_true", help="make the data of --data-folder only")
    peer = parser.add_argument_group("Hugging Face's GPTBigCode")
    peer.add_argument("--peer", action="store_true", help="time it too, in turns")
    peer.add_argument("--peer-compiled", action="store_true", help="under torch.compile, too")
    peer.add_argument(
        "--rounds", type=int, default=5, help="turns that share the steps (default: 5)"
    )
    peer.add_argument(
        "--cpu-time",
        action="store_true",
        help="with --threads 1: CPU time, which other work on the machine disturbs less",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="all figures, step by step")
    output.add_argument(
        "--profile", type=Path, metavar="DIR", help="a trace of 3 more steps, for Perfetto"
    )


def run(args: argparse.Namespace) -> None:
    """Prepare the data, build the run, time its steps and print what came out. Every process calls it."""
    _check(args)
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    if args.prepare:
        prepare_corpus(args.data_folder, SHAPES[args.model].vocab_size)
        return
    config = make_config(args, [])
    import torch
    import torch.distributed as dist

    from megatron.parallel.context import initialize_distributed

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = initialize_distributed(config.parallel, launch)
    with _data_flags(args, config) as data_flags:
        inputs = open_inputs(make_config(args, data_flags), launch.world_size)
        try:
            _measure(args, inputs, launch, device)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{args.model} does not fit ({error}); give a smaller --micro-batch-size, or -- "
                "--recompute-granularity full"
            ) from None
        dist.barrier()  # nobody takes the data away while another reads it
    dist.destroy_process_group()


def _check(args: argparse.Namespace) -> None:
    if args.steps < 1 or args.warmup < 0 or args.rounds < 1:
        raise ConfigError("--steps and --rounds must be above 0, --warmup 0 or more")
    if args.threads is not None and args.threads < 1:
        raise ConfigError("--threads must be above 0")
    if (args.data_path is None) != (args.tokenizer_file is None):
        raise ConfigError("--data-path and --tokenizer-file belong together; give both or neither")
    if args.prepare and args.data_folder is None:
        raise ConfigError("--prepare needs --data-folder, where the data shall lie")
    if args.peer_compiled and not args.peer:
        raise ConfigError("--peer-compiled needs --peer")
    if args.cpu_time and not (args.peer and args.threads == 1):
        raise ConfigError(
            "--cpu-time needs --peer and --threads 1: threads that wait take CPU time"
        )
    if args.peer and args.documents:
        raise ConfigError("--peer cannot keep documents apart; leave out --documents")


def make_config(args: argparse.Namespace, data_flags: Sequence[str]) -> Config:
    """Make the options of the run: the shape's flags, then ours, then those behind `--`."""
    shape: Shape = SHAPES[args.model]
    flags = shape.flags()
    if args.seq_length is not None:
        length = str(args.seq_length)
        flags += ["--seq-length", length, "--max-position-embeddings", length]
    micro_batch_size = args.micro_batch_size or shape.micro_batch_size
    flags += ["--micro-batch-size", str(micro_batch_size)]
    flags += ["--train-iters", "1000000", "--lr-warmup-iters", str(LR_WARMUP_ITERS)]
    if args.documents:
        flags.append("--reset-attention-mask")
    if args.bf16 or shape.is_published:
        flags.append("--bf16")
    flags += data_flags
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    parsed = cli.parse_known(parser, [*flags, *args.training_flags])
    if not hasattr(parsed, "global_batch_size"):
        layout = cli.config_from(parsed).parallel
        dp_size = layout.data_parallel_size(Launch.from_environment().world_size)
        parsed.global_batch_size = args.global_batch_size or (
            parsed.micro_batch_size * shape.num_micro_batches * dp_size
        )
    return cli.config_from(parsed)


@contextmanager
def _data_flags(args: argparse.Namespace, config: Config) -> Iterator[list[str]]:
    """Give the flags that name the data, which is made if none is named. Collective over the world."""
    from megatron.parallel.agreement import on_first_rank

    given, vocab_size = config.data, SHAPES[args.model].vocab_size
    if args.data_path is not None:
        yield ["--train-data-path", *args.data_path, "--tokenizer-file", args.tokenizer_file]
    elif any((given.data_path, given.train_data_path, given.train_weighted_split_paths)):
        yield []  # behind `--`
    elif args.data_folder is not None:
        yield on_first_rank(lambda: prepare_corpus(args.data_folder, vocab_size)).flags()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield on_first_rank(lambda: prepare_corpus(Path(folder), vocab_size)).flags()


def _measure(args: argparse.Namespace, inputs: Inputs, launch: Launch, device: object) -> None:
    """Build the run, time it, and let the first process print."""
    import torch

    from megatron.benchmark import train_report
    from megatron.benchmark.profile import profile_steps
    from megatron.benchmark.steps import time_parts, time_steps
    from megatron.parallel.context import ParallelContext
    from megatron.planning.gpu_monitor import GpuMonitor
    from megatron.training.pretrain import build_run

    assert isinstance(device, torch.device)
    context = ParallelContext.create(inputs.config.parallel, launch.world_size, device)
    run = build_run(inputs, plan_start(inputs, launch.world_size), context)
    report = train_report.describe(args.model, inputs, run, launch.world_size)
    if args.peer:
        _measure_peer(args, run, context, report)
        run.close()
        return
    memory = train_report.PeakMemory(device)
    time_steps(run, args.warmup)
    with GpuMonitor(device) as monitor:
        timed = time_steps(run, args.steps)
    report |= train_report.figures(run, timed) | {"peak_memory_bytes": memory.read()}
    report["gpu"] = monitor.summary()
    if context.rank == 0:  # at once: what follows may be cut short
        print(train_report.in_one_line(report), file=sys.stderr, flush=True)
        write_json("--json", args.json, {"format": FORMAT, **report})
    report["part_seconds"] = time_parts(run, min(PART_STEPS, args.steps))
    profile = profile_steps(run, args.profile, PROFILE_STEPS) if args.profile else ""
    run.close()
    if context.rank == 0:
        print(train_report.to_markdown(report))
        if profile:
            print(f"\n{profile}")
        write_json("--json", args.json, {"format": FORMAT, **report})


def _measure_peer(
    args: argparse.Namespace, run: Run, context: ParallelContext, report: dict[str, object]
) -> None:
    """Time ours and GPTBigCode in turns, and print their ratio."""
    from megatron.benchmark import train_report
    from megatron.benchmark.gpt_bigcode import compare
    from megatron.benchmark.measure import table

    if context.world_size > 1:
        raise ConfigError("--peer compares two single processes; start it without torchrun")
    rows = compare(
        run,
        steps_per_turn=-(-args.steps // args.rounds),
        rounds=args.rounds,
        num_warmup=max(1, args.warmup),
        with_compiled=args.peer_compiled,
        clock=time.process_time if args.cpu_time else time.perf_counter,
    )
    report["rows"] = [
        {"peer": row.peer_name, "ours": row.ours, "peer_tokens_per_second": row.peer}
        for row in rows
    ]
    print(train_report.settings_table(report))
    print()
    print(table(rows))
    write_json("--json", args.json, {"format": FORMAT, **report})
