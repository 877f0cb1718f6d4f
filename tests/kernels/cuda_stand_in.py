"""What stands for a GPU where there is none: a library that is called, and csrc/*.cu compiled for a CPU to be one."""

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron.kernels import cuda_library

FOLDER, SOURCES = Path(__file__).parent, Path(__file__).parents[2] / "csrc"
STREAM = 77
NUM_PROCESSORS = 3  # as cuda_on_cpu.h has it
# of CUDA's language, not of C++: a launch, memory of a size that it gives, an instruction
LAUNCH = re.compile(r"([\w:]+(?:<[^;]*?>)?)<<<(.*?), stream>>>\((.*?)\);", re.DOTALL)
DYNAMIC = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")
INSTRUCTIONS = {r'asm\("ex2\..*?\);': "y = std::exp2(x);", r'asm\("rcp\..*?\);': "y = 1.0f / x;"}


def pretend(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """Let `launch` call a library with tensors of the CPU."""
    monkeypatch.setattr(cuda_library, "_load", lambda: library)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    stream = types.SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    processors = types.SimpleNamespace(multi_processor_count=NUM_PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)


def in_plain_cpp(source: str) -> str:
    """Write a CUDA source in the words of cuda_on_cpu.h."""
    source = LAUNCH.sub(r"cpu::launch(\2, [=] { \1(\3); });", source)
    source = DYNAMIC.sub(r"\1* const \2 = cpu::dynamic.data();", source)
    for instruction, formula in INSTRUCTIONS.items():
        source = re.sub(instruction, formula, source)
    return source


def compile_for_cpu(folder: Path) -> ctypes.CDLL:
    """Compile all kernels into a library in a folder. Skips where there is no compiler for it."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    for path in SOURCES.glob("*.cu*"):
        (folder / path.name).write_text(in_plain_cpp(path.read_text()))
    for name in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h"):
        (folder / name).write_text(f'#include "{FOLDER / "cuda_on_cpu.h"}"\n')
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-w", f"-I{folder}", "-x", "c++"]
    names = [path.stem for path in folder.glob("*.cu") if path.stem != "library"]
    started = [
        subprocess.Popen([*command, "-c", f"{name}.cu", "-o", f"{name}.o"], cwd=folder)
        for name in names
    ]
    assert [one.wait() for one in started] == [0] * len(names)
    output = folder / "library.so"
    objects = [f"{name}.o" for name in names]
    subprocess.run([compiler, "-shared", *objects, "-o", output], cwd=folder, check=True)
    return ctypes.CDLL(str(output))
