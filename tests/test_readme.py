"""What pages say: the files they name exist, and the tools and the Makefile know what README gives them."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STARCODER2 = (ROOT / "docs/starcoder2.md").read_text()
TOUR = (ROOT / "docs/tour.md").read_text()


def commands() -> list[str]:
    """The lines of the shell blocks of README and of another model's page, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README + STARCODER2, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


@functools.cache
def flags_of(tool: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, str(ROOT / tool), "--help"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"--[a-z][a-z0-9_-]*", result.stdout))


@pytest.mark.parametrize("command", commands())
def test_command_can_be_typed(command: str) -> None:
    words = shlex.split(command)
    tools = [word for word in words if word.startswith(("tools/", "examples/"))]
    for tool in tools:
        assert (ROOT / tool).is_file(), f"{tool} does not exist"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    owner = None  # of the flags that follow
    for word in words:
        if word.endswith(
            (".py", ".sh", ".slurm")
        ):  # what follows an example's name is for training
            owner = word if word.startswith("tools/") else "tools/pretrain_gpt.py"
        elif word.startswith("--") and owner is not None:
            assert word in flags_of(owner) | {"--help", "--plan"}


def test_what_is_said_of_megatrons_flags_is_of_flags_that_exist() -> None:
    page = (ROOT / "docs/megatron.md").read_text()
    unknown = set(re.findall(r"--[a-z][\w-]*", page)) - flags_of("tools/pretrain_gpt.py")
    assert unknown == {"--calculate-per-token-loss"}  # named as Megatron's


def test_every_tool_is_in_the_table() -> None:
    for path in (ROOT / "tools").iterdir():
        if path.suffix in (".py", ".sh"):
            assert f"`tools/{path.name}`" in README, f"README's table lacks tools/{path.name}"


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{page.name}" for page in (ROOT / "docs").iterdir()),
]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{name} links to {target}"


def test_the_tour_leads_to_files_that_exist() -> None:
    for path in re.findall(r"`((?:megatron|tests|examples)/[\w./]+)`", TOUR):
        assert (ROOT / path).exists(), f"the tour leads to {path}"


def test_the_model_of_the_tour_learns_its_samples() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TOUR, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loss = re.match(r"tensor\((\S+),", done.stdout)
    assert loss is not None and float(loss[1]) < 0.5
    assert "DTensor" in done.stdout


def test_folders_named_exist() -> None:
    block = README.split("## Where things are")[1].split("```")[1]
    for word in re.findall(r"^(\S+/)", block, re.MULTILINE):
        assert (ROOT / word).is_dir(), word
