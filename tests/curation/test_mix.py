"""Tokens by language and source, the same for any number of workers, and a blend that training reads as written."""

import json
from pathlib import Path

import pytest

from megatron.curation.blend import MixConfig
from megatron.curation.mix import mix
from megatron.curation.run.options import RunOptions
from megatron.curation.run.record_io import PartSource
from megatron.data.split import read_data_options
from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig
from megatron.tokenizer.tokenizer import NullTokenizer


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "stack"
    folder.mkdir()
    for name, rows in {
        folder / "0.jsonl": [("1 2 3", "Python"), ("4", "C++"), ("5 6", None)],
        folder / "1.jsonl": [("7 8 9 10 11", "python")],
        tmp_path / "issues.jsonl": [("1 2 3 4", "python")],
    }.items():
        lines = [json.dumps({"text": text, "language": language}) for text, language in rows]
        name.write_text("".join(line + "\n" for line in lines))
    return str(folder), str(tmp_path / "issues.jsonl")


def mixed(inputs, tmp_path, name="out", workers=1, **settings):
    options = RunOptions(input=inputs, output=str(tmp_path / name), workers=workers)
    return mix(options, MixConfig(**settings), NullTokenizer(100))


def contents(folder: Path):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    return {p.relative_to(folder): p.read_bytes() for p in files}


def test_tokens_are_counted_by_language_and_source(inputs, tmp_path):
    both = mixed(inputs, tmp_path, by="both").groups()
    tokens = {name: count.tokens for name, count in both.items()}  # an end of document each
    assert tokens == {"stack-python": 10, "issues-python": 5, "stack-unknown": 3, "stack-cpp": 2}
    by_language = mixed(inputs, tmp_path, "b").groups()
    assert by_language["python"].tokens == 15
    assert by_language["python"].documents == 3
    assert sum(count.tokens for count in by_language.values()) == sum(tokens.values())


def test_weights_are_tokens_up_to_a_cap(inputs, tmp_path):
    natural = mixed(inputs, tmp_path)
    assert natural.weights() == {"python": 15, "unknown": 3, "cpp": 2}
    capped = mixed(inputs, tmp_path, "b", cap=("python=6", "all=2"))
    assert capped.weights() == {"python": 6, "unknown": 2, "cpp": 2}
    assert capped.describe().splitlines()[1].split() == ["python", "3", "0.0", "15", "6", "60.00%"]


def test_groups_too_small_for_a_sample_are_left_out_of_the_blend_and_named(
    inputs, tmp_path, caplog
):
    mixture = mixed(inputs, tmp_path, min_tokens=3, prefix="d/{group}")
    assert mixture.weights() == {"python": 15, "unknown": 3}
    assert (tmp_path / "out/data_path.txt").read_text() == "15 d/python 3 d/unknown\n"
    assert "--min-tokens leaves out cpp" in caplog.text
    assert mixture.describe().splitlines()[-2].split() == ["cpp", "1", "0.0", "2", "0", "0.00%"]


def test_the_blend_is_what_training_reads(inputs, tmp_path):
    mixed(inputs, tmp_path, prefix="d/{group}")
    words = (tmp_path / "out/data_path.txt").read_text().split()
    assert words == ["15", "d/python", "3", "d/unknown", "2", "d/cpp"]
    path = tmp_path / "out/weighted_split_paths.txt"
    given = DataConfig(train_weighted_split_paths_path=str(path))
    train = read_data_options(given).train
    read = [word for source in train.sources for word in (str(source.weight), source.prefix)]
    assert read == words


def test_an_interrupted_mix_continues_and_ends_as_if_it_had_not_been(inputs, tmp_path, monkeypatch):
    expected = mixed(inputs, tmp_path, "whole", split_records=True)
    read = PartSource.read

    def failing(self):
        for document in read(self):
            if self.part.path.name == "1.jsonl":
                raise DataError("the disk went away")
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(PartSource, "read", failing)
        with pytest.raises(DataError, match="went away"):
            mixed(inputs, tmp_path, split_records=True)
    out = tmp_path / "out"
    counted = {path.name for path in (out / ".counts").glob("*.json")}
    assert "00000.json" in counted and "00001.json" not in counted  # the one behind may be begun
    (out / "python/.00001.jsonl.zst.0.tmp").write_text("half a file of a killed run")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("00000.*")}
    assert mixed(inputs, tmp_path, split_records=True).groups() == expected.groups()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(out) == contents(tmp_path / "whole")


def test_other_caps_need_no_counting_and_another_tokenizer_another_folder(
    inputs, tmp_path, monkeypatch
):
    mixed(inputs, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PartSource, "read", None)
        assert mixed(inputs, tmp_path, cap=("python=6",)).weights()["python"] == 6
    options = RunOptions(input=inputs, output=str(tmp_path / "out"))
    with pytest.raises(DataError, match="add --overwrite"):
        mix(options, MixConfig(), NullTokenizer(99))


def test_records_are_written_apart_the_same_for_any_number_of_workers(inputs, tmp_path):
    mixed(inputs, tmp_path, "one", split_records=True)
    mixed(inputs, tmp_path, "two", workers=2, split_records=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    again = RunOptions(input=(str(tmp_path / "one/python"),), output=str(tmp_path / "again"))
    assert mix(again, MixConfig(), NullTokenizer(100)).weights() == {"python": 15}


def test_what_cannot_be_meant_is_an_error(inputs, tmp_path):
    with pytest.raises(ConfigError, match="json=1e9"):
        mixed(inputs, tmp_path, cap=("python",))
    with pytest.raises(ConfigError, match="a blend file cannot hold ,"):
        mixed(inputs, tmp_path, prefix="a,{group}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes").touch()
    with pytest.raises(DataError, match="holds notes, which no run of curate"):
        mixed(inputs, tmp_path)


def test_a_cap_of_no_group_is_named_after_the_work_and_does_not_lose_it(inputs, tmp_path, caplog):
    assert mixed(inputs, tmp_path, cap=("perl=3",)).weights()["python"] == 15
    assert "--cap perl" in caplog.text


@pytest.mark.parametrize("formatted", [False, True])
def test_records_that_are_left_out_are_said(inputs, tmp_path, formatted, caplog, monkeypatch):
    monkeypatch.setattr("megatron.curation.mix.check_sentinels", lambda *_: None)
    (tmp_path / "stack/2.jsonl").write_text('{"no": "text"}\n')
    with caplog.at_level("WARNING", "megatron"):
        mixture = mixed(inputs, tmp_path, formatted=formatted)
    assert mixture.num_bad == (6 if formatted else 1)
    assert f"{mixture.num_bad} records are left out" in caplog.text
    assert ("curate.py format" in caplog.text) == formatted
