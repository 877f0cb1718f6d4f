"""examples/finetune_python.sh: StarCoder's Python stage as published, and what it lacks it names."""

from pathlib import Path

import pytest

from tests.examples import test_pretrain_starcoder as pretrain

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_python.sh"


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SCRIPT", SCRIPT)


@pytest.mark.parametrize("model", ["1b", "15b"])
def test_the_stage_is_the_published_one(model: str) -> None:
    result = pretrain.launch("--dry-run", MODEL=model)
    assert result.returncode == 0, result.stderr
    # StarCoder §5.5: 8,500 steps of 512 sequences, 35 B tokens
    assert "4,352,000 samples, 35,651,584,000 tokens" in result.stdout
    assert "512 sequences of 8192 = 4,194,304 tokens a step" in result.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL": "santacoder"}, "MODEL is 'santacoder'; allowed: tiny, 1b, 3b, 7b, 15b"),
        ({"MODEL": "1b", "LOAD": ""}, "LOAD is not set"),
        ({"MODEL": "1b", "LOAD": "/nope"}, "LOAD is '/nope', which is no folder"),
        ({"MODEL": "1b", "LOAD": "/"}, "DATA_PATH is not set"),
        ({"MAX_RESTARTS": "many"}, "MAX_RESTARTS is 'many'"),
    ],
)
def test_mistakes_end_with_a_line_and_code_2(variables: dict[str, str], message: str) -> None:
    result = pretrain.launch(**variables)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
