"""The model card of an export."""

import torch
import yaml

from megatron.convert.hf_export import architecture_of
from megatron.convert.model_card import data_names, model_card
from megatron.convert.source import RunSource
from megatron.options import DataConfig
from tests.convert.runs import make_run


def card_of(root, **options):
    make_run(root, **options)
    return card(root, 1_137_000_000)


def card(root, num_parameters=1):
    source = RunSource.open(root)
    return model_card(source, architecture_of(source.config.model), num_parameters, torch.bfloat16)


def test_it_says_what_the_run_was(tmp_path):
    card = card_of(tmp_path)
    for row in (
        "| parameters | 1,137,000,000 |",
        "| precision of the files | bfloat16 |",
        "| attention | 3 heads of 5, multi-query |",
        "| steps | 20 |",
        "| tokens seen | 1,920 |",
        "| data | py_text, c_text |",
        "| last training loss | 4.2500 |",
        "| last validation loss, python | 4.5000 |",
    ):
        assert row in card, row
    assert "# A 1.14B parameter model" in card


def test_it_names_no_folder_of_the_machine_and_no_later_step(tmp_path):
    card = card_of(tmp_path)
    assert "secret" not in card
    assert str(tmp_path) not in card
    assert "1.0000" not in card


def test_a_loss_that_was_not_finite_is_shown_as_it_was(tmp_path):
    make_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        '{"iteration": 10, "lm_loss": 5.0}\n{"iteration": 20, "lm_loss": null}\n'
        '{"iteration": 20, "validation": "python", "lm_loss": null}\n'
    )
    said = card(tmp_path)
    assert "| last training loss | 5.0000 |" in said
    assert "| last validation loss, python | nan |" in said


def test_losses_of_a_damaged_file_are_left_out_and_that_is_said(tmp_path, caplog):
    make_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('no line\n{"iteration": 10, "lm_loss": 5.0}\n')
    assert "loss" not in card(tmp_path)
    assert "line 1 is no record of a run" in caplog.text


def test_its_front_matter_is_yaml_with_a_licence_to_fill_in(tmp_path):
    front = yaml.safe_load(card_of(tmp_path).split("---\n")[1])
    assert front["license"] == "other"
    assert front["library_name"] == "transformers"


def test_data_is_named_without_weights_and_ranges():
    assert data_names(DataConfig(data_path=("1e3", "/a/py", "2", "c"))) == ["py", "c"]
    group = "python: 0.3 0:0.97 /a/py_text, 0.7 0:0.97 /b/c_text"
    assert data_names(DataConfig(train_weighted_split_paths=(group,))) == ["py_text", "c_text"]


def test_infilling_is_explained_only_where_it_was_trained(tmp_path):
    assert "<fim_prefix>" in card_of(tmp_path / "a")
    assert "fim" not in card_of(tmp_path / "b", fim_rate=0.0)


def test_its_examples_run(tmp_path, monkeypatch, capsys):
    from megatron.convert.hf_export import export_hf

    make_run(tmp_path / "run", max_position_embeddings=200)
    out = tmp_path / "export"
    out.mkdir()
    source = RunSource.open(tmp_path / "run")
    export_hf(source, out, dtype=torch.float32, max_shard_bytes=10**9, progress=lambda _: None)
    blocks = (out / "README.md").read_text().split("```python\n")[1:]
    code = "".join(block.split("```")[0] for block in blocks)
    assert "max_new_tokens=64" in code
    monkeypatch.chdir(out)
    exec(code.replace("max_new_tokens=64", "max_new_tokens=3"), {})
    assert "def fibonacci(n):" in capsys.readouterr().out
