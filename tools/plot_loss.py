"""Draw the loss curves of a run from its metrics.jsonl, and say where each began and ended. See --help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron import cli
from megatron.errors import DataError
from megatron.training.curves import Curves, read_curves
from megatron.whole_file import replacing

EXAMPLES = """\
  one run:
    python tools/plot_loss.py --metrics runs/a/metrics.jsonl --output runs/a/loss.png
  two runs in one picture:
    python tools/plot_loss.py --metrics runs/a/metrics.jsonl runs/b/metrics.jsonl --output both.png

prints one line a validation set: its first and last loss and the difference, in nats"""


def draw(runs: Sequence[Curves], output: Path) -> None:
    """Write a picture of all curves; its format follows the suffix of output."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("plot_loss.py needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if output.suffix.removeprefix(".") not in known:
        raise DataError(
            f"--output {output} ends in none of .{', .'.join(sorted(known))}: that says which picture to write"
        )
    axes = figure.subplots()
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        if run.train:
            axes.plot(*_points(run.train), linewidth=1, alpha=0.6, label=f"{prefix}training")
        for name, losses in run.validation.items():
            axes.plot(*_points(losses), marker="o", markersize=4, label=f"{prefix}{name}, held out")
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as file:
            figure.savefig(file, format=output.suffix.removeprefix("."))
    except OSError as error:
        raise DataError(f"--output {output} cannot be written: {error.strerror}") from None


def _points(losses: dict[int, float]) -> tuple[list[int], list[float]]:
    iterations = sorted(losses)
    return iterations, [losses[iteration] for iteration in iterations]


def describe(run: Curves) -> list[str]:
    """Say in one line a validation set (training loss, if there is none) how far its loss moved."""
    lines = []
    for name, losses in (run.validation or {"training": run.train}).items():
        first, last = min(losses), max(losses)
        line = f"{name:<12}{losses[first]:8.3f} at iteration {first}"
        if last > first:
            change = losses[last] - losses[first]
            line += f" -> {losses[last]:.3f} at {last} ({change:+.3f} nats)"
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> int | None:
    """Read, draw, describe."""
    parser = cli.make_parser("Draw the loss curves of one run or several.", EXAMPLES)
    parser.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="metrics.jsonl of a run",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="picture to write (.png, .svg, .pdf)"
    )
    args = cli.parse_known(parser, argv)
    runs = [read_curves(path) for path in args.metrics]
    draw(runs, args.output)
    for run in runs:
        print("\n".join(([f"{run.name}:"] if len(runs) > 1 else []) + describe(run)))
    print(f"drew {args.output}")
    return None


if __name__ == "__main__":
    cli.run_tool(main)
