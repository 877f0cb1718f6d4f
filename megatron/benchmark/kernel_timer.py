"""Times one operation at a time on a device, and lays out what came out: knows nothing of which operations there are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron.errors import ConfigError
from megatron.timeline import Timeline

NUM_WARMUPS = 2
NUM_REPEATS = 10
BUDGET_SECONDS = 0.2  # of repeats; a slow operation has at least two


@dataclass(frozen=True)
class Work:
    """What an operation has to do at least: the figure that its time is measured against."""

    forward: float
    backward: float
    unit: str  # "byte" or "flop"


@dataclass(frozen=True)
class Case:
    """One implementation of one operation on inputs of one size."""

    what: str
    implementation: str
    work: Work
    prepare: Callable[[], tuple[Callable[[], object], Callable[[], object] | None]]
    # makes the inputs; gives the forward pass, and forward and backward together where there is a backward pass


@dataclass(frozen=True)
class Result:
    """A row of the table: milliseconds, or why there are none."""

    case: Case
    forward: float | None
    both: float | None
    obstacle: str = ""

    def rates(self) -> tuple[float | None, float | None]:
        """Give TB/s or TFLOP/s of forward, and of forward and backward."""
        work = self.case.work
        return (
            work.forward / self.forward / 1e9 if self.forward else None,
            (work.forward + work.backward) / self.both / 1e9 if self.both else None,
        )


def time_cases(cases: Sequence[Case], device: torch.device) -> Iterator[Result]:
    """Time each, one after another; one that needs more memory than there is says so."""
    for case in cases:
        yield _time(case, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _time(case: Case, device: torch.device) -> Result:
    try:
        forward, both = case.prepare()
        return Result(case, time_call(forward, device), both and time_call(both, device))
    except ConfigError as error:
        return Result(case, None, None, str(error))
    except torch.OutOfMemoryError:
        return Result(case, None, None, "does not fit")
    except (
        RuntimeError
    ) as error:  # of a compiler or a library, which the other rows do not suffer from
        return Result(case, None, None, f"fails: {str(error).strip().splitlines()[0][:100]}")


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Give the median of the milliseconds that a call takes on the device."""
    for _ in range(NUM_WARMUPS):
        call()
    first = _laps(call, device, 1)[0]
    num_repeats = max(2, min(NUM_REPEATS, int(BUDGET_SECONDS / max(first, 1e-9))))
    return 1e3 * statistics.median(_laps(call, device, num_repeats))


# Cycles that a GPU waits while the host queues the calls, some 30 ms: small operations take the host longer to
# start than a GPU to do, which a whole step hides.
HEAD_START = 50_000_000


def _laps(call: Callable[[], object], device: torch.device, num_repeats: int) -> list[float]:
    timeline = Timeline(device)
    if device.type == "cuda":
        torch.cuda._sleep(HEAD_START)
    timeline.mark("start")
    for _ in range(num_repeats):
        call()
        timeline.mark("call")
    return [seconds for _, seconds in timeline.laps()]


def table(results: Sequence[Result]) -> str:
    """Lay results out as Markdown; the last column compares with the reference of the same operation."""
    lines = [
        "| what | by | forward ms | forward + backward ms | rate forward | rate of both | x reference |",
        "|---|---|---|---|---|---|---|",
    ]
    references = {
        r.case.what: r.both or r.forward for r in results if r.case.implementation == "reference"
    }
    for result in results:
        case = result.case
        if result.obstacle:
            lines.append(f"| {case.what} | {case.implementation} | {result.obstacle} | | | | |")
            continue
        reference, taken = references.get(case.what), result.both or result.forward
        speed = f"{reference / taken:.2f}" if reference and taken else ""
        unit = "TB/s" if case.work.unit == "byte" else "TFLOP/s"
        rates = [f"{rate:.3g} {unit}" if rate else "" for rate in result.rates()]
        times = [f"{ms:.3f}" if ms else "" for ms in (result.forward, result.both)]
        cells = [case.what, case.implementation, *times, *rates, speed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
