#!/usr/bin/env python3
"""Compile csrc/*.cu with nvcc into megatron/kernels/_cuda.so, if it is not up to date; setup.py calls this too."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron.cli import EXIT_FAILURE, make_parser, parse_known, run_tool
from megatron.errors import ConfigError
from megatron.kernels.cuda_library import LIBRARY, SOURCES, sources_digest

EXAMPLES = """\
  python tools/build_kernels.py
  python tools/build_kernels.py --arch 90          for Hopper alone, in half the time
  python tools/build_kernels.py --verbose          registers and spills of every kernel"""

DEFAULT_ARCHS = ("80", "90")  # A100; H100 and H200. Later GPUs compile the PTX of the last one
FLAGS = ("-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-Wall")


def find_nvcc(given: Path | None) -> str:
    """Find nvcc: the one given, on PATH, or where CUDA installs it. ConfigError where there is none."""
    if given is not None:
        if shutil.which(given) is None:
            raise ConfigError(f"--nvcc {given} is no program; give the path of nvcc")
        return str(given)
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise ConfigError(
            "there is no nvcc on PATH or in /usr/local/cuda/bin; install the CUDA toolkit, or give "
            "--nvcc PATH. Without these kernels everything runs, on PyTorch's own"
        )
    return found


def code_flags(archs: Sequence[str]) -> list[str]:
    """Ask for machine code of every architecture, and for PTX of the last."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def digest(command: Sequence[str]) -> str:
    """Name what a library is made from; the library carries the name, and so says whether it is up to date."""
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    state = f"{sources_digest()}\n" + "\n".join(command)
    return hashlib.sha256(version + state.encode()).hexdigest()


def build(command: Sequence[str], sources: Sequence[Path], output: Path) -> bool:
    """Compile sources side by side, link, and put the library in place at once; False if nvcc fails.

    nvcc writes to stderr what it has to say; an earlier library stays where it fails.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build_kernels_") as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]

        def compile_one(source: Path, target: Path) -> int:
            return subprocess.run([*command, "-c", str(source), "-o", str(target)]).returncode

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            codes = list(pool.map(compile_one, sources, objects))
        library = Path(folder) / output.name
        link = [*command, "-shared", *map(str, objects), "-o", str(library)]
        if any(codes) or subprocess.run(link).returncode:
            return False
        library.replace(output)
    return True


def main() -> int:
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--arch",
        nargs="+",
        default=DEFAULT_ARCHS,
        metavar="NUMBER",
        help="compute capabilities to compile for, without a dot (default: 80 90); later GPUs than the last one "
        "compile its PTX when they load it",
    )
    parser.add_argument("--nvcc", type=Path, help="nvcc, if neither on PATH nor in /usr/local/cuda")
    parser.add_argument(
        "--output", type=Path, default=LIBRARY, help="default: where megatron looks for it"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="registers and spills of each kernel"
    )
    args = parse_known(parser, None)
    for arch in args.arch:
        if not arch.isdecimal():
            raise ConfigError(f"--arch {arch} is no compute capability; write 90 for 9.0 (H100)")

    command = [find_nvcc(args.nvcc), *FLAGS, *code_flags(args.arch)]
    sources = sorted(SOURCES.glob("*.cu"))
    name = digest(command)
    if args.output.exists() and name.encode() in args.output.read_bytes() and not args.verbose:
        print(f"{args.output} is up to date")
        return 0
    command += [f'-DMEGATRON_BUILD="{name}"', f'-DMEGATRON_SOURCES="{sources_digest()}"']
    command += ["-Xptxas=-v"] if args.verbose else []
    start = time.perf_counter()
    if not build(command, sources, args.output):
        print("nvcc failed: its words are above", file=sys.stderr)
        return EXIT_FAILURE
    print(
        f"{args.output}: {len(sources)} files for {', '.join(args.arch)}, {time.perf_counter() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    run_tool(main)
