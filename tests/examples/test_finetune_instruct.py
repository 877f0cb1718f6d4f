"""examples/finetune_instruct.sh: what a laptop can check of it, its own conversations, and what it lacks it names."""

import json
from pathlib import Path

import pytest

from megatron.tokenizer.chat_template import why_unusable
from tests.examples import test_pretrain_starcoder as pretrain

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_instruct.sh"


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SCRIPT", SCRIPT)


def test_it_is_checked_without_data_or_weights() -> None:
    result = pretrain.launch("--dry-run", MODEL="15b")
    assert result.returncode == 0, result.stderr
    assert "16 processes = 4 pipeline x 1 data x 4 tensor parallel" in result.stdout
    assert "64 sequences of 8192" in result.stdout


def test_its_own_conversations_can_be_learned_from() -> None:
    lines = (SCRIPT.parent / "conversations.jsonl").read_text().splitlines()
    assert len(lines) == 40
    assert [why_unusable(json.loads(line)["messages"]) for line in lines] == [None] * 40


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL": "1b", "CHATS": "c.jsonl", "LOAD": ""}, "LOAD is not set"),
        ({"MODEL": "1b", "LOAD": "/", "CHATS": "/nope"}, "CHATS is '/nope', which is no file"),
        ({"MODEL": "1b", "LOAD": "/", "CHATS": str(SCRIPT)}, "TOKENIZER_FILE is not set"),
        ({"MODEL": "1b", "LOAD": "/"}, "CHATS is not set"),
        ({"MODEL": "1b", "LOAD": "/", "CHATS": "c", "EPOCHS": "half"}, "EPOCHS is 'half'"),
    ],
)
def test_mistakes_end_with_a_line_and_code_2(variables: dict[str, str], message: str) -> None:
    result = pretrain.launch(**variables)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_conversations_that_were_written_before_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats_messages_document.idx").touch()
    paths = {"CHATS": str(SCRIPT), "RUN_DIR": str(tmp_path), "TOKENIZER_FILE": str(SCRIPT)}
    result = pretrain.launch(MODEL="1b", LOAD="/", **paths)
    assert f"those that {tmp_path}/data/chats_messages_document holds already" in result.stdout
    assert result.returncode == 2 and "LOAD is '/'" in result.stderr.splitlines()[-1]
