"""The data card of an output folder: what was read, kept and dropped, by stage, rule and language. Markdown and plots.

Knows nothing of how the counts came about.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from megatron.curation.run.output_folder import disk_errors, write_whole
from megatron.curation.run.totals import Totals
from megatron.errors import DataError

CARD = "README.md"
MAX_BARS = 30  # of a plot


def write_card(output: Path) -> Path:
    """Write the card of a complete run, and its plots where matplotlib is installed; give its path."""
    try:
        run, totals = _read(output)
    except (OSError, orjson.JSONDecodeError, KeyError) as error:
        raise DataError(f"{output} is no complete output of curate.py: {error}") from None
    path = output / CARD
    with disk_errors(output):
        plots = _plot(totals, output) if find_spec("matplotlib") else []
        write_whole(path, ("\n".join(_lines(totals, run, plots)).rstrip() + "\n").encode())
    return path


def _read(folder: Path) -> tuple[dict[str, Any], Totals]:
    run: dict[str, Any] = orjson.loads((folder / "run.json").read_bytes())
    return run, Totals.from_json(orjson.loads((folder / "totals.json").read_bytes()))


def _lines(totals: Totals, run: dict[str, Any], plots: Sequence[str]) -> list[str]:
    return [
        *("# Data card", ""),
        *_summary(totals),
        *_history(run),
        *_dropped(totals),
        *(_plot_line("dropped.png", "Documents dropped, by rule", plots)),
        *_languages(totals),
        *(_plot_line("languages.png", "Text kept, by language", plots)),
    ]


def _summary(totals: Totals) -> list[str]:
    lines = [
        f"{totals.num_read:,} documents were read ({totals.bytes_read / 1e6:,.1f} MB of text), {totals.kept():,} kept "
        f"({totals.bytes_kept() / 1e6:,.1f} MB), {totals.dropped():,} dropped."
    ]
    if totals.bad:
        lines.append(f"{totals.bad.total():,} records could not be read and lie in `quarantine/`.")
    dropped = sum(size for _, _, size in totals.by_rule())
    if grown := totals.bytes_kept() + dropped - totals.bytes_read:
        word = "longer" if grown > 0 else "shorter"
        lines.append(f"Stages that change text made it {abs(grown) / 1e6:,.2f} MB {word}.")
    return [
        *lines,
        "What became of each document: `python tools/curate.py why --output FOLDER ID`, and the Parquet files in "
        "`ledger/`.",
        "",
    ]


def _history(run: dict[str, Any]) -> list[str]:
    """Tell the stages of this folder, after those of the folders that it was made from."""
    stages, folders = _made(run)
    lines = ["## How it was made", ""]
    if stages:
        lines += ["| stage | settings |", "|---|---|"]
        lines += [f"| {name} | {settings} |" for name, settings in dict.fromkeys(stages)] + [""]
    lines += ["Input: " + ", ".join(f"`{Path(path).name}`" for path in run["inputs"]), ""]
    return lines + [f"- {folder}" for folder in dict.fromkeys(folders)] + [""] * bool(folders)


def _made(run: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Give stages with their settings, and what was counted in the folders before, the first first."""
    stages: list[tuple[str, str]] = []
    folders: list[str] = []
    for path in map(Path, run["inputs"]):
        # a file, or moved away
        with contextlib.suppress(OSError, orjson.JSONDecodeError, KeyError):
            older, totals = _read(path)
            more = _made(older)
            stages += more[0]
            folders += [*more[1], f"`{path.name}`: {totals.describe()}"]
    if run["command"][:1] == ["collect"]:
        roots = " ".join(f"`{Path(path).name}`" for path in run["inputs"])
        stages.append(("collect", f"folders {roots}"))
    return stages + [(step["stage"], _settings(step["settings"])) for step in run["steps"]], folders


def _settings(settings: Mapping[str, Any]) -> str:
    """Lay out what is set, in the spelling of the options; what is off, or not given, is left out."""
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if value is True:
            words.append(name)
        elif isinstance(value, list) and value:
            words.append(f"{name} {' '.join(map(str, value))}")
        elif isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
            words.append(f"{name} {value[:12]}")  # of files; enough to tell them from others
        elif value not in (None, False, "", []):
            words.append(f"{name} {value}")
    return ", ".join(words).replace("|", "\\|") or "as they are"


def _dropped(totals: Totals) -> list[str]:
    rows = totals.by_rule()
    lines = [
        "## What was dropped",
        "",
        "| stage: rule | documents | MB of text |",
        "|---|---:|---:|",
    ]
    lines += [f"| {rule} | {count:,} | {size / 1e6:,.2f} |" for rule, count, size in rows]
    size = sum(size for _, _, size in rows)
    lines += [f"| all | {totals.dropped():,} | {size / 1e6:,.2f} |", ""]
    if changes := totals.by_rule("changed"):
        lines += ["## What was changed", "", "| stage: rule | documents |", "|---|---:|"]
        lines += [f"| {rule} | {count:,} |" for rule, count, _ in changes] + [""]
    if totals.bad:
        lines += ["## What could not be read", "", "| reason | records |", "|---|---:|"]
        lines += [f"| {reason} | {n:,} |" for reason, n in totals.bad.most_common()] + [""]
    return lines


def _languages(totals: Totals) -> list[str]:
    kept, dropped = totals.by_language("kept"), totals.by_language("dropped")
    none = (0, 0)
    whole = max(totals.bytes_kept(), 1)
    lines = [
        "## Languages",
        "",
        "| language | kept | MB of text | share | dropped | MB of text |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in sorted({*kept, *dropped}, key=lambda name: (-kept.get(name, none)[1], name)):
        (count, size), (num_dropped, size_dropped) = kept.get(name, none), dropped.get(name, none)
        lines.append(
            f"| {name or '(unknown)'} | {count:,} | {size / 1e6:,.2f} | {size / whole:.1%} | {num_dropped:,} | "
            f"{size_dropped / 1e6:,.2f} |"
        )
    size = sum(size for _, _, size in totals.by_rule())
    return [
        *lines,
        f"| all | {totals.kept():,} | {totals.bytes_kept() / 1e6:,.2f} | 100.0% | {totals.dropped():,} | {size / 1e6:,.2f} |",
        "",
    ]


def _plot_line(name: str, title: str, plots: Sequence[str]) -> list[str]:
    return [f"![{title}]({name})", ""] if name in plots else []


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
