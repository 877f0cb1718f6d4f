"""examples/finetune_python.sh: StarCoder's Python stage as published, and what it lacks it names."""

import json
import subprocess
import sys
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
    # 8,500 steps of 512 sequences, 35 B tokens
    assert "4,352,000 samples, 35,651,584,000 tokens" in result.stdout
    assert "512 sequences of 8192 = 4,194,304 tokens a step" in result.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL": "santacoder"}, "MODEL is 'santacoder'; allowed: tiny, 1b, 3b, 7b, 15b"),
        ({"MODEL": "1b", "LOAD": ""}, "LOAD is not set"),
        ({"MODEL": "1b", "LOAD": "/nope"}, "LOAD is '/nope', which is no folder"),
        ({"MODEL": "1b", "LOAD": "/"}, "DATA_PATH is not set"),
        ({"MODEL": "1b", "LOAD": "/", "VALID_PATHS": "/nope"}, "VALID_PATHS names '/nope'"),
        (
            {"MODEL": "1b", "LOAD": "/", "DATA_PATH": "x"},
            "LOAD is '/', which holds no run's checkpoints",
        ),
        ({"MAX_RESTARTS": "many"}, "MAX_RESTARTS is 'many'"),
    ],
)
def test_mistakes_end_with_a_line_and_code_2(variables: dict[str, str], message: str) -> None:
    result = pretrain.launch(**variables)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ("", 3),
        ("MAX_LOSS_RISE=5", 0),
        ("MAX_LOSS_RISE=4", 3),
        ("ALLOW_FORGETTING=1", 0),
        ("ALLOW_FORGETTING=1 MAX_LOSS_RISE=-1", 2),  # a mistake is nothing that was forgotten
    ],
)
def test_what_was_forgotten_ends_a_run_with_code_3_unless_it_may(
    tmp_path: Path, variables: str, code: int
) -> None:
    losses = [(0, "python", 5.27), (0, "cpp", 5.04), (160, "python", 5.18), (160, "cpp", 5.28)]
    lines = [{"iteration": i, "validation": name, "lm_loss": loss} for i, name, loss in losses]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    root = SCRIPT.parents[1]
    script = (
        f"root={root} python={sys.executable} run_dir={tmp_path} save={tmp_path} {variables}; "
        f"source {root}/examples/launcher.sh; source {root}/examples/finetune.sh; judge_forgetting"
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=root)
    assert result.returncode == code, result.stderr
    assert ("| cpp | 5.040 | 5.280 |" in result.stdout) == (code != 2)
    assert (tmp_path / "forgetting.json").exists() == (code != 2)
    assert ("THE MODEL FORGOT" in result.stderr) == (code == 3)


def test_one_checkpoint_of_a_run_is_no_hugging_face_folder(tmp_path: Path) -> None:
    (tmp_path / "iter_0000002").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for name in (
        "iter_0000002/config.json",
        "iter_0000002/metadata.json",
        "tokenizer/tokenizer.json",
    ):
        (tmp_path / name).touch()
    script = (
        f"root={SCRIPT.parents[1]} load={tmp_path}/iter_0000002 tokenizer_file=; source $root/examples/finetune.sh; "
        'is_hugging_face "$load" && echo theirs || echo ours; find_tokenizer; echo "$tokenizer_file"'
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["ours", f"{tmp_path}/iter_0000002/../tokenizer/tokenizer.json"]
