"""Every tool's --help shows how the tool is used."""

import re

import pytest

from tests.forked import ROOT, run_forked

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
COMMAND = re.compile(r"^ +.*(python tools/|sbatch )", re.MULTILINE)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_shows_two_examples(tool):
    result = run_forked(f"tools/{tool}", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    examples = result.stdout.partition("examples:\n")[2]
    assert len(COMMAND.findall(examples)) >= 2 and f"tools/{tool}" in examples
