"""Clock, power and temperature of a GPU while something runs on it, as nvidia-smi sees them.

A GPU that is too hot or at its power limit slows down: a speed means little without these.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

import torch

INTERVAL_MS = 200
QUERY = {
    "clocks.sm": "sm_clock_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
    "clocks.max.sm": "highest_sm_clock_mhz",
    "power.limit": "power_limit_w",
}


@dataclass
class GpuMonitor:
    """Samples one GPU between entering and leaving; nothing on a CPU or without nvidia-smi."""

    device: torch.device
    samples: list[dict[str, float]] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _output: IO[str] | None = None

    def __enter__(self) -> GpuMonitor:
        if self.device.type == "cuda" and shutil.which("nvidia-smi") is not None:
            uuid = str(torch.cuda.get_device_properties(self.device).uuid)
            self._output = tempfile.TemporaryFile("w+")
            self._process = subprocess.Popen(
                [
                    "nvidia-smi",
                    f"--id=GPU-{uuid.removeprefix('GPU-')}",
                    f"--query-gpu={','.join(QUERY)}",
                    "--format=csv,noheader,nounits",
                    f"--loop-ms={INTERVAL_MS}",
                ],
                stdout=self._output,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None or self._output is None:
            return
        self._process.terminate()
        self._process.wait()
        with self._output as output:
            output.seek(0)
            self.samples = read_samples(output.read())

    def readings(self, name: str) -> list[float]:
        """Give what was read of one quantity."""
        return [sample[name] for sample in self.samples if name in sample]

    def summary(self) -> dict[str, list[float]]:
        """Give the lowest, the median and the highest value of each quantity; empty if nothing was seen."""
        names = {name: None for sample in self.samples for name in sample}
        columns = {name: self.readings(name) for name in names}
        return {
            name: [min(values), statistics.median(values), max(values)]
            for name, values in columns.items()
        }


def read_samples(output: str) -> list[dict[str, float]]:
    """Read nvidia-smi's lines, without what it does not know (`[N/A]`) and without a last line that was cut."""
    samples = []
    for line in output.splitlines(keepends=True):
        cells = line.split(",")
        if line.endswith("\n") and len(cells) == len(QUERY):
            pairs = zip(QUERY.values(), cells, strict=True)
            samples.append({name: float(cell) for name, cell in pairs if _is_number(cell)})
    return samples


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "", 1).isdecimal()
