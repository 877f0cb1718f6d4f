"""Say what a run would hold and how fast it would go, before asking for the machines. See --help."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron import cli
from megatron.config import Config
from megatron.errors import ConfigError
from megatron.planning.hardware import read_hardware
from megatron.planning.options import complete, fill_in

if TYPE_CHECKING:
    from megatron.planning.goodput import Failures

EXAMPLES = """\
  StarCoder on 512 GPUs, with the flags of its training:
    python tools/plan.py --world-size 512 --num-layers 40 --hidden-size 6144 --num-attention-heads 48 \\
      --attention-head-type multiquery --seq-length 8192 --max-position-embeddings 8192 \\
      --tensor-model-parallel-size 4 --pipeline-model-parallel-size 4 --sequence-parallel \\
      --use-distributed-optimizer --bf16 --use-flash-attn --global-batch-size 512 --lr 3e-4 \\
      --train-iters 250000 --vocab-size 49152
  a smaller one on 8 H200, as JSON:
    python tools/plan.py --world-size 8 --hardware h200-141gb --json <the flags of tools/pretrain_gpt.py>
  which layout of 64 H100s is the fastest for a model and a batch:
    python tools/plan.py --world-size 64 --hardware h100-80gb --rank-layouts <the same>
  how fast the machine at hand is, its links too, for plans with --hardware mine.yaml:
    torchrun --nproc-per-node 8 tools/plan.py --calibrate mine.yaml <the flags of tools/pretrain_gpt.py>

exit codes: 0 it fits; 2 it does not, or an option is wrong: one line says what to change"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, plan, print, and refuse what does not fit."""
    args = cli.parse_known(_make_parser(), argv)
    _check(args)
    if args.calibrate is not None:
        return calibrate(args)
    config = fill_in(cli.config_from(args))
    _check_documents(config, args.document_length)
    hardware = read_hardware(args.hardware)
    if args.rank_layouts is None:
        config = complete(config, args.world_size)

    # torch takes seconds to import: a user's mistake does not wait for it.
    from megatron.planning.layouts import rank_layouts
    from megatron.planning.plan import Question, check_fits, make_plan
    from megatron.planning.report import ranking_to_json, ranking_to_table, to_json, to_table

    question = Question(
        args.world_size,
        hardware,
        args.document_length,
        args.pue,
        args.carbon_intensity,
        _failures(args),
    )
    if args.rank_layouts is not None:
        ranking = rank_layouts(config, question, args.rank_layouts)
        print(_json(ranking_to_json(ranking)) if args.json else ranking_to_table(ranking))
        return 0
    plan = make_plan(config, question)
    print(_json(to_json(plan)) if args.json else to_table(plan))
    check_fits(plan)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "Plan a training run on any machine: memory of each rank, step time, cost. Starts nothing.",
        EXAMPLES,
    )
    parser.add_argument("--world-size", type=int, help="processes of the run; needed for a plan")
    parser.add_argument(
        "--hardware",
        default="a100-80gb",
        metavar="NAME",
        help="a100-80gb, h100-80gb, h200-141gb or a YAML file like theirs (default: a100-80gb)",
    )
    parser.add_argument(
        "--rank-layouts",
        nargs="?",
        type=int,
        const=10,
        metavar="N",
        help="plan every layout of the processes instead of the one given, and show the N fastest (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--pue",
        type=float,
        default=1.2,
        help="energy of the data center for one of its devices' (default: 1.2, StarCoder's)",
    )
    parser.add_argument(
        "--carbon-intensity",
        type=float,
        default=0.15495,
        help="kg CO2eq a kWh (default: 0.15495, StarCoder's, us-west-2)",
    )
    parser.add_argument(
        "--document-length",
        type=int,
        metavar="N",
        help="with --reset-attention-mask: tokens of a document, on average",
    )
    _add_failures(parser)
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure this machine instead, at the sizes of the model, and write a YAML file for --hardware",
    )
    parser.add_argument(
        "--calibrate-seconds", type=float, default=45.0, help="to measure for (default: 45)"
    )
    parser.add_argument("--overwrite", action="store_true", help="--calibrate may replace FILE")
    cli.add_config(parser)
    return parser


def _add_failures(parser: argparse.ArgumentParser) -> None:
    """Add what the time is planned by that failures and checkpoints take; the defaults are Failures'."""
    parser.add_argument(
        "--device-mtbf-hours",
        type=float,
        metavar="H",
        help="hours that a device runs between two failures (default: 50,677, Llama 3's on 16,384 GPUs)",
    )
    parser.add_argument(
        "--restart-minutes",
        type=float,
        metavar="M",
        help="from a failure to the first new step (default: 10)",
    )
    parser.add_argument(
        "--storage-gb-per-second",
        type=float,
        metavar="GB",
        help="what all processes together write to --save (default: 20)",
    )


def _failures(args: argparse.Namespace) -> Failures:
    given = {
        "device_mtbf_hours": args.device_mtbf_hours,
        "restart_minutes": args.restart_minutes,
        "storage_bandwidth": args.storage_gb_per_second and 1e9 * args.storage_gb_per_second,
    }
    from megatron.planning.goodput import Failures

    return Failures(**{name: value for name, value in given.items() if value is not None})


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2)


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for this tool's own options."""
    if args.pue < 1.0 or args.carbon_intensity < 0.0:
        raise ConfigError("--pue is at least 1 and --carbon-intensity at least 0")
    if args.calibrate is None and args.world_size is None:
        raise ConfigError("--world-size is missing: how many processes the run will have")
    if args.world_size is not None and args.world_size < 1:
        raise ConfigError(f"--world-size is {args.world_size}; give a whole number from 1 on")
    if args.rank_layouts is not None and args.rank_layouts < 1:
        raise ConfigError("--rank-layouts shows 1 layout at least")
    for name in ("device_mtbf_hours", "restart_minutes", "storage_gb_per_second"):
        value = getattr(args, name)
        if value is not None and not 0.0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; give a number above 0")
    if args.calibrate_seconds <= 0.0:
        raise ConfigError("--calibrate-seconds must be above 0")
    if args.document_length is not None and args.document_length < 1:
        raise ConfigError("--document-length is at least 1 token")


def calibrate(args: argparse.Namespace) -> int:
    """Measure the machine, compare with what was known of it, and write the file."""
    config = fill_in(cli.config_from(args))
    _check_documents(config, args.document_length)

    import torch.distributed as dist

    from megatron.logging import configure
    from megatron.parallel.context import initialize_distributed
    from megatron.parallel.launch import Launch
    from megatron.planning import calibrate as calibration
    from megatron.training.throughput import peak_flops

    # of a run as small as its layout allows, unless one is named
    config = complete(config, args.world_size or config.parallel.model_parallel_size)
    launch = Launch.from_environment()
    configure(launch.rank)
    calibration.check_target(args.calibrate, may_replace=args.overwrite)
    device = initialize_distributed(config.parallel, launch)
    try:
        hardware = calibration.calibrate(
            config,
            launch,
            device,
            document_length=args.document_length,
            budget=args.calibrate_seconds,
            peak_flops=peak_flops,
        )
    finally:
        dist.destroy_process_group()
    if launch.rank == 0:
        print(calibration.compare(calibration.known_before(args.calibrate, hardware), hardware))
        print(calibration.save(hardware, args.calibrate))
    return 0


def _check_documents(config: Config, document_length: int | None) -> None:
    if document_length is not None and not config.data.reset_attention_mask:
        raise ConfigError(
            "--document-length needs --reset-attention-mask: without it documents see each other"
        )


if __name__ == "__main__":
    cli.run_tool(main)
