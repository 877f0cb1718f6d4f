"""The CUDA kernels compile, and the library has every function that Python calls. No GPU is needed, only nvcc."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
KERNELS = sorted((ROOT / "megatron" / "kernels").glob("*.py"))

# (name, parameters) of what csrc/*.cu defines
FUNCTIONS = [
    match
    for source in SOURCES
    for match in re.findall(r'extern "C" cudaError_t (\w+)\(([^)]*)\)', source.read_text())
]


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "build_kernels.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_python_calls_what_is_defined():
    called = {
        name for path in KERNELS for name in re.findall(r'launch\(\s*"(\w+)"', path.read_text())
    }
    assert called == {name for name, _ in FUNCTIONS}


@pytest.mark.timeout(900)
def test_sources_compile_for_every_gpu_they_are_meant_for(tmp_path):
    if not (shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")):
        pytest.skip("needs nvcc")
    output = tmp_path / "library.so"
    result = run_tool("--output", str(output), "--arch", "80", "90")
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    library = ctypes.CDLL(str(output))
    for name, _ in FUNCTIONS:
        assert hasattr(library, name), name
    assert "up to date" in run_tool("--output", str(output), "--arch", "80", "90").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["library.so"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--nvcc", "/nowhere/nvcc"], "/nowhere/nvcc is no program"),
        (["--arch", "9.0"], "write 90 for 9.0"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(arguments, words, tmp_path):
    result = run_tool("--output", str(tmp_path / "library.so"), *arguments)
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
