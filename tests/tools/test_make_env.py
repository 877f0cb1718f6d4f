"""tools/make_env.sh with a stand-in for Python and pip: what it installs, when it does nothing, what it says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A Python whose `-m venv` makes an environment of itself, and whose pip writes down what it was asked for.
STUB = """#!/bin/bash
case "$*" in
    *"import ensurepip, venv"*) exit {venv_code} ;;
    *"import sys, torch"*|-) exit 1 ;;
    "-m venv .venv") mkdir -p .venv/bin .venv/lib/python{version} && cp "$0" .venv/bin/python ;;
    "-m pip"*) echo "$*" >>"$PIP_CALLS"; echo "{pip_says}"; {pip_does}; exit {pip_code} ;;
    "-m compileall"*) ;;
    *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what make_env.sh reads, in a folder of its own."""
    (tmp_path / "tools").mkdir()
    for name in (
        "tools/make_env.sh",
        "requirements.txt",
        "requirements-dev.txt",
        "setup.py",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    return tmp_path


def make_stub(
    checkout: Path,
    *,
    venv_code: int = 0,
    pip_code: int = 0,
    pip_says: str = "fine",
    pip_does: str = ":",
) -> str:
    stub = checkout / "stub_python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub.write_text(
        STUB.format(
            python=sys.executable,
            version=version,
            venv_code=venv_code,
            pip_code=pip_code,
            pip_says=pip_says,
            pip_does=pip_does,
        )
    )
    stub.chmod(0o755)
    return str(stub)


def make_env(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"CXX": "bash", "PIP_CALLS": str(checkout / "pip_calls")}  # any program there is
    return subprocess.run(
        ["bash", str(checkout / "tools" / "make_env.sh"), *arguments],
        capture_output=True,
        text=True,
        env=environment | variables,
        timeout=300,
    )


def pip_calls(checkout: Path) -> list[str]:
    path = checkout / "pip_calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.skipif(
    Path("/dev/nvidia0").exists(), reason="the CPU build is for machines without a GPU"
)
def test_without_gpu_the_cpu_build_is_installed_once(checkout: Path) -> None:
    python = make_stub(checkout)
    result = make_env(checkout, PYTHON=python)
    assert result.returncode == 0, result.stderr
    packages, build = pip_calls(checkout)
    assert "torch==2.13.0+cpu -r requirements.txt -r requirements-dev.txt" in packages
    assert build.endswith("--no-build-isolation --no-deps -e .")

    again = make_env(checkout, PYTHON=python)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(pip_calls(checkout)) == 2


def test_with_gpu_the_cuda_build_is_installed(checkout: Path) -> None:
    (checkout / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    (checkout / "nvidia-smi").chmod(0o755)
    path = f"{checkout}:{os.environ['PATH']}"
    result = make_env(checkout, PYTHON=make_stub(checkout), PATH=path)
    assert result.returncode == 0, result.stderr
    assert " torch==2.13.0 -r" in pip_calls(checkout)[0]


@pytest.mark.parametrize(
    ("changed", "num_calls"),
    [
        ("csrc/data_helpers.cpp", 1),
        ("setup.py", 1),
        ("requirements.txt", 2),
        ("requirements-dev.txt", 2),
    ],
)
def test_a_change_remakes_what_depends_on_it(checkout: Path, changed: str, num_calls: int) -> None:
    python = make_stub(checkout)
    make_env(checkout, PYTHON=python)
    before = len(pip_calls(checkout))
    with (checkout / changed).open("a") as stream:
        stream.write("# changed\n")
    assert make_env(checkout, PYTHON=python).returncode == 0
    assert len(pip_calls(checkout)) - before == num_calls


def test_a_half_made_environment_is_made_again(checkout: Path) -> None:
    assert make_env(checkout, PYTHON=make_stub(checkout, pip_code=1)).returncode == 2
    assert (checkout / ".venv" / "bin" / "python").exists()
    result = make_env(checkout, PYTHON=make_stub(checkout))
    assert result.returncode == 0, result.stderr
    assert "ready" in result.stderr
    assert not (checkout / "install.log").exists()  # it told of the first attempt


def test_ctrl_c_is_one_line_and_no_failure_of_the_network(checkout: Path) -> None:
    python = make_stub(checkout, pip_code=1, pip_does="kill -INT $PPID")
    result = make_env(checkout, PYTHON=python)
    assert result.returncode == 130
    lines = result.stderr.strip().splitlines()
    assert lines[-1] == "environment: interrupted; the same command continues"
    assert "Is there a network" not in result.stderr and not (checkout / "install.log").exists()
    assert make_env(checkout, PYTHON=make_stub(checkout)).returncode == 0


def test_help_tells_what_it_reads_and_makes_nothing(checkout: Path) -> None:
    result = make_env(checkout, "--help")
    assert result.returncode == 0
    assert "PYTHON   the interpreter to build on" in result.stdout
    assert "set -" not in result.stdout and not (checkout / ".venv").exists()
    assert make_env(checkout, "--halp").returncode == 2


@pytest.mark.skipif(
    Path("/dev/nvidia0").exists(), reason="the CPU build is for machines without a GPU"
)
def test_without_network_both_indexes_are_tried_and_one_message_says_what_to_do(
    checkout: Path,
) -> None:
    says = "ERROR: No matching distribution found for torch"
    result = make_env(checkout, PYTHON=make_stub(checkout, pip_code=1, pip_says=says))
    assert result.returncode == 2
    first, second = pip_calls(checkout)
    assert "--extra-index-url" not in first and "--extra-index-url" in second
    assert says in result.stderr
    assert "PIP_FIND_LINKS" in result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "no-such-python"}, "no Python >= 3.10 (tried no-such-python)"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler (tried no-such-compiler)"),
    ],
)
def test_what_is_missing_is_named(checkout: Path, variables: dict[str, str], message: str) -> None:
    result = make_env(checkout, **({"PYTHON": make_stub(checkout)} | variables))
    assert result.returncode == 2
    assert message in result.stderr
    assert pip_calls(checkout) == []


def test_a_python_without_venv_is_named(checkout: Path) -> None:
    result = make_env(checkout, PYTHON=make_stub(checkout, venv_code=1))
    assert result.returncode == 2
    assert "has no venv module" in result.stderr and "python3-venv" in result.stderr
