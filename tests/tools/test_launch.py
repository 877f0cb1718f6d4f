"""tools/launch.py: how a launch ends, by what its processes ended with."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.world import launcher_environment

TOOL = Path(__file__).parents[2] / "tools" / "launch.py"


def launch(script: Path, num_processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--standalone", "--nproc-per-node", str(num_processes), script]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=launcher_environment() | {"OMP_NUM_THREADS": "1"},  # else torchrun tells of its choice
        timeout=120,
    )


@pytest.mark.parametrize("code", [0, 2, 75])
def test_an_expected_end_is_silent_and_keeps_its_code(tmp_path: Path, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint('said why', file=sys.stderr)\nsys.exit({code})\n")
    result = launch(script, num_processes=2)
    assert result.returncode == code
    assert result.stderr.count("said why") >= 1
    assert result.stderr.replace("said why", "").strip() == ""


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


def test_help_begins_with_examples_and_a_mistake_is_one_line() -> None:
    shown = run_tool("--help").stdout
    assert shown.count("python tools/launch.py") >= 2
    assert shown.index("examples:") < shown.index("--rdzv-endpoint RDZV_ENDPOINT")
    result = run_tool()
    assert result.returncode == 2
    assert result.stderr.startswith("launch.py: error: ") and result.stderr.count("\n") == 1


def test_a_crash_keeps_the_report_of_who_failed_first(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise RuntimeError('a bug')\n")
    result = launch(script)
    assert result.returncode == 1
    assert "a bug" in result.stderr
    assert "Root Cause" in result.stderr
