"""Whether the C++ extensions of this package for CPUs can be called. Knows nothing of what they compute."""

from __future__ import annotations

import functools
import importlib

# Of how Python calls each; the extension says as VERSION for which it was compiled.
VERSIONS = {"_cpu_attention": 1, "_cpu_operations": 1}


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
