"""The compiled CUDA kernels of csrc/*.cu, called by name with pointers, numbers and the current stream.

`tools/build_kernels.py` makes one library of them with nvcc alone: no header of torch is in it, so that one build serves
every torch. Every function has C linkage, takes pointers, int64_t and float and, last, a cudaStream_t, and returns a
cudaError_t. What its tensors mean is said where it is wrapped; knows nothing of operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("_cuda.so")
SOURCES = Path(__file__).parents[2] / "csrc"
BUILD = "python tools/build_kernels.py"

Argument = Tensor | int | float | ctypes.c_double | None

# What functions take as a number for the dtype of a tensor; csrc/vector.cuh has the same.
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def dtype_code(dtype: torch.dtype) -> int:
    """Give the number by which kernels know a dtype of floating point."""
    return _DTYPE_CODES[dtype]


@functools.cache
def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for name in ("megatron_error_string", "megatron_sources"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def sources_digest() -> str | None:
    """Name the CUDA sources of this checkout; None where the package is installed without them."""
    sources = sorted(SOURCES.glob("*.cu*"))
    state = hashlib.sha256()
    for path in sources:
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest() if sources else None


@functools.cache
def obstacle() -> str | None:
    """Say why the kernels cannot be called on the current device, or None. Asked once a process."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if not LIBRARY.exists():
        return f"csrc/*.cu is not compiled here ({BUILD} needs nvcc)"
    try:
        library = _load()
        built_from = library.megatron_sources().decode()
    except (OSError, AttributeError) as error:  # of another machine, or of before it said so
        return f"{LIBRARY.name} cannot be loaded ({error}); {BUILD} makes it anew"
    if sources_digest() not in (None, built_from):
        return f"{LIBRARY.name} was built from other sources than these; {BUILD} makes it anew"
    code = library.megatron_probe()
    return f"{LIBRARY.name} has no code for this GPU ({_words(code)})" if code else None


def _words(code: int) -> str:
    words: bytes = _load().megatron_error_string(ctypes.c_int(code))
    return words.decode()


def _argument(
    value: Argument,
) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int64 | ctypes.c_double:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.c_double):
        return value
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)


def launch(name: str, *args: Argument) -> None:
    """Call a function of the library on the device and current stream of the first tensor.

    A Python float is passed as float, a c_double as double, an int as int64_t, a tensor as its address and None as a
    null pointer. Raises RuntimeError with CUDA's words if the launch fails; what goes wrong on the device shows at a
    later call.
    """
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device(device):
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        code = getattr(_load(), name)(*map(_argument, args), stream)
    if code:
        raise RuntimeError(f"CUDA kernel {name}: {_words(code)}")
