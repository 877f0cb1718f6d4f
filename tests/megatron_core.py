"""Runs a script against the installed megatron-core, whose package has the same name as ours."""

import importlib.metadata
import subprocess
import sys
import tempfile

import pytest

# Its folder megatron/ is put in place of ours, in a process of its own that runs elsewhere.
PREAMBLE = """
import importlib.metadata, sys, types
megatron = types.ModuleType("megatron")
megatron.__path__ = [str(importlib.metadata.distribution("megatron-core").locate_file("megatron"))]
sys.modules["megatron"] = megatron
"""


def run_megatron_core(script: str, *args: str) -> str:
    """Run script, which may `from megatron.core… import …`, with args; give its stdout, or skip the test."""
    try:
        importlib.metadata.distribution("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("megatron-core is not installed (requirements-dev.txt)")
    command = [sys.executable, "-W", "ignore", "-c", PREAMBLE + script, *args]
    result = subprocess.run(
        command, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
