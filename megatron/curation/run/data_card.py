"""The data card of an output folder: what was read, kept and dropped, by stage, rule and language. Markdown and plots.

Knows nothing of how the counts came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from megatron.curation.run.totals import Totals
from megatron.errors import DataError

CARD = "README.md"
MAX_BARS = 30  # of a plot


def write_card(output: Path) -> Path:
    """Write the card of a complete run, and its plots where matplotlib is installed; give its path."""
    try:
        totals = Totals.from_json(orjson.loads((output / "totals.json").read_bytes()))
        run = orjson.loads((output / "run.json").read_bytes())
    except (OSError, orjson.JSONDecodeError, KeyError) as error:
        raise DataError(f"{output} is no complete output of curate.py: {error}") from None
    plots = _plot(totals, output) if find_spec("matplotlib") else []
    path = output / CARD
    path.write_text("\n".join(_lines(totals, run, plots)) + "\n", encoding="utf-8")
    return path


def _lines(totals: Totals, run: dict[str, Any], plots: Sequence[str]) -> list[str]:
    kept, dropped = totals.by_language("kept"), totals.by_language("dropped")
    lines = [
        "# Data card",
        "",
        f"{totals.num_read:,} documents were read ({totals.bytes_read / 1e6:,.1f} MB of text), {totals.kept():,} kept "
        f"({totals.bytes_kept() / 1e6:,.1f} MB), {totals.dropped():,} dropped; {totals.bad.total():,} records were set "
        "aside unread. What became of each one: `python tools/curate.py why --output FOLDER ID`, and the Parquet files in "
        "`ledger/`.",
        "",
        "## How it was made",
        "",
        "| stage | settings |",
        "|---|---|",
    ]
    for step in run["steps"]:
        settings = ", ".join(f"{key} {_value(value)}" for key, value in step["settings"].items())
        lines.append(f"| {step['stage']} | {settings} |")
    lines += ["", "Input: " + ", ".join(f"`{Path(path).name}`" for path in run["inputs"]), ""]
    lines += [
        "## What was dropped",
        "",
        "| stage: rule | documents | MB of text |",
        "|---|---:|---:|",
    ]
    rows = totals.by_rule()
    lines += [f"| {rule} | {count:,} | {size / 1e6:,.2f} |" for rule, count, size in rows]
    size = sum(size for _, _, size in rows)
    lines += [f"| all | {totals.dropped():,} | {size / 1e6:,.2f} |", ""]
    if changes := totals.by_rule("changed"):
        lines += ["## What was changed", "", "| stage: rule | documents |", "|---|---:|"]
        lines += [f"| {rule} | {count:,} |" for rule, count, _ in changes] + [""]
    if totals.bad:
        lines += ["## What could not be read", "", "| reason | records |", "|---|---:|"]
        lines += [f"| {reason} | {n:,} |" for reason, n in totals.bad.most_common()] + [""]
    lines += [
        "## Languages",
        "",
        "| language | kept | MB of text | dropped |",
        "|---|---:|---:|---:|",
    ]
    for name in sorted({*kept, *dropped}, key=lambda name: (-kept.get(name, (0, 0))[1], name)):
        count, num_bytes = kept.get(name, (0, 0))
        lines.append(
            f"| {name or '(unknown)'} | {count:,} | {num_bytes / 1e6:,.2f} | {dropped.get(name, (0, 0))[0]:,} |"
        )
    lines += [
        f"| all | {totals.kept():,} | {totals.bytes_kept() / 1e6:,.2f} | {totals.dropped():,} |",
        "",
    ]
    return lines + [f"![{name}]({name})" for name in plots]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _plot(totals: Totals, output: Path) -> list[str]:
    kept = totals.by_language("kept")
    sizes = sorted(
        ((size / 1e6, name or "(unknown)") for name, (_, size) in kept.items()), reverse=True
    )
    rules = [(float(count), rule) for rule, count, _ in totals.by_rule()]
    names = []
    for name, title, rows in (
        ("languages.png", "kept, MB of text", sizes),
        ("dropped.png", "dropped, documents", rules),
    ):
        if rows:
            _bars(output / name, title, rows[:MAX_BARS])
            names.append(name)
    return names


def _bars(path: Path, title: str, rows: Sequence[tuple[float, str]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.25 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh([name for _, name in rows], [value for value, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(title)
    figure.savefig(path, dpi=100)
