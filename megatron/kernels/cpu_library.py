"""Whether the C++ extensions of this package for CPUs can be called, and by what. Knows nothing of what they compute."""

from __future__ import annotations

import functools
import importlib

from torch import Tensor

# Of how Python calls each and lays out memory for it; the extension says as VERSION for which it was compiled.
VERSIONS = {"_cpu_attention": 1, "_cpu_operations": 1, "_prediction": 3}


@functools.cache
def obstacle(name: str) -> str | None:
    """Say why an extension of VERSIONS cannot be called, or None. Asked once a process."""
    where = f"megatron.kernels.{name}"
    try:
        extension = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name != where:
            raise
        return f"megatron/kernels/{name} is not compiled (make env does it)"
    except ImportError as error:  # of another machine or another Python
        return f"megatron/kernels/{name} cannot be loaded ({error}); make env compiles it anew"
    if getattr(extension, "VERSION", 0) != VERSIONS[name]:
        return f"megatron/kernels/{name} was compiled from older sources; make env does it anew"
    return None


def address(x: Tensor | None) -> int:
    """Give where a tensor lies, 0 for none."""
    return 0 if x is None else x.data_ptr()
