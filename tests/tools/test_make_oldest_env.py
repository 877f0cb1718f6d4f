"""tools/make_oldest_env.sh with a stand-in for pip, and the libraries that let a CUDA build of torch run without CUDA."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The Python of .venv: its `-m venv` makes an environment of itself, whose pip knows the builds in $BUILDS, and whose
# torch is one of them.
STUB = """#!/bin/bash
case "$*" in
    "-m venv"*) mkdir -p "$3/bin" "$3/lib/torch" && cp "$0" "$3/bin/python" ;;
    "-m pip"*)
        for last; do :; done
        echo "$last" >>"$CALLS"
        [[ " $BUILDS " == *" $last "* ]] || { echo "No matching distribution found for $last"; exit 1; }
        echo "$last" >"$(dirname "$0")/../lib/torch/build" ;;
    *sysconfig*) echo "$(dirname "$0")/../lib" ;;
    *sys.path*) echo /packages/of/venv/site-packages ;;
    "-c import torch")
        torch=$(dirname "$0")/../lib/torch
        [[ $(<"$torch/build") == *+cpu || -f $torch/stand_ins ]] ;;
    ".ci/cuda_stand_ins.py"*) touch "$(dirname "$2")/stand_ins" ;;
    "-m compileall"*) ;;
    *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the script reads, with a .venv of the stub."""
    (tmp_path / "tools").mkdir()
    for name in ("tools/make_oldest_env.sh", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB.replace("{python}", sys.executable))
    python.chmod(0o755)
    return tmp_path


def make(checkout, builds):
    result = subprocess.run(
        ["bash", str(checkout / "tools/make_oldest_env.sh")],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "CALLS": str(checkout / "calls"), "BUILDS": builds},
        timeout=300,
    )
    calls = checkout / "calls"
    return result, calls.read_text().split() if calls.exists() else []


def is_with_stand_ins(checkout):
    return (checkout / ".venv-oldest-torch/lib/torch/stand_ins").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="there every build is for the CPU")
def test_the_oldest_torch_of_setup_py_is_installed_once_beside_the_packages_of_venv(checkout):
    result, calls = make(checkout, "torch==2.11.0+cpu torch==2.11.0")
    assert result.returncode == 0, result.stderr
    assert calls == ["torch==2.11.0+cpu"] and not is_with_stand_ins(checkout)
    paths = (checkout / ".venv-oldest-torch/lib/packages_of_venv.pth").read_text()
    assert paths == "/packages/of/venv/site-packages\n"

    again, calls = make(checkout, "")
    assert (again.returncode, again.stderr, len(calls)) == (0, "", 1)

    setup = (checkout / "setup.py").read_text()
    (checkout / "setup.py").write_text(re.sub(r"torch>=[\d.]+", "torch>=2.12", setup))
    assert make(checkout, "torch==2.12.0+cpu")[1][1:] == ["torch==2.12.0+cpu"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there every build is for the CPU")
def test_without_a_cpu_build_the_other_one_gets_stand_ins(checkout):
    result, calls = make(checkout, "torch==2.11.0")
    assert result.returncode == 0, result.stderr
    assert calls == ["torch==2.11.0+cpu", "torch==2.11.0+cpu", "torch==2.11.0"]
    assert is_with_stand_ins(checkout)


def test_what_pip_said_is_shown_and_a_half_made_environment_is_made_again(checkout):
    result, _ = make(checkout, "")
    assert result.returncode == 2
    assert "| No matching distribution found for torch==2.11.0" in result.stderr
    assert make(checkout, "torch==2.11.0")[0].returncode == 0


def call_functions(library):
    """Load a library in a process of its own, which may end in the loader, and say what its functions give."""
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.error.restype = ctypes.c_char_p; "
        "print(library.create(), library.init(), library.error().decode())"
    )
    command = [sys.executable, "-c", code, str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout + result.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("cc") and shutil.which("readelf")),
    reason="needs Linux, a C compiler and binutils",
)
def test_stand_ins_have_each_function_that_is_asked_for_and_all_fail(tmp_path):
    def build(name, source, *options):
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / name, *options],
            input=source,
            text=True,
            check=True,
        )

    (tmp_path / "versions").write_text("CUDNN_9 { cudnnCreate; cudnnGetErrorName; };")
    build(
        "libcudnn.so.9",
        "int cudnnCreate(void) { return 0; } char *cudnnGetErrorName(void) { return 0; }",
        "-Wl,-soname,libcudnn.so.9",
        f"-Wl,--version-script={tmp_path / 'versions'}",
    )
    build("libnccl.so.2", "int ncclInit(void) { return 0; }", "-Wl,-soname,libnccl.so.2")
    build(
        "libtorch_cuda.so",
        "int cudnnCreate(void), ncclInit(void); char *cudnnGetErrorName(void);"
        "int create(void) { return cudnnCreate(); } int init(void) { return ncclInit(); }"
        "char *error(void) { return cudnnGetErrorName(); }",
        *(f"-L{tmp_path}", "-l:libcudnn.so.9", "-l:libnccl.so.2", "-Wl,-z,now,-rpath,$ORIGIN"),
    )
    for name in ("libcudnn.so.9", "libnccl.so.2", "versions"):
        (tmp_path / name).unlink()
    assert "libcudnn.so.9: cannot open" in call_functions(tmp_path / "libtorch_cuda.so")

    command = [sys.executable, str(ROOT / ".ci/cuda_stand_ins.py"), str(tmp_path)]
    subprocess.run(command, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "libcudnn.so.9",
        "libnccl.so.2",
        "libtorch_cuda.so",
    }
    assert call_functions(tmp_path / "libtorch_cuda.so") == "100 100 no CUDA here\n"
