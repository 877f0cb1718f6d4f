"""tools/collect_source.py: the files alone decide what is in a corpus."""

import json
from pathlib import Path

import pytest

from megatron.errors import ConfigError, DataError
from tools import collect_source as tool

GOOD = "def area(width: int, height: int) -> int:\n    return width * height\n" * 5


def write_tree(root: Path, num_files: int = 400) -> None:
    """Write that many Python files of 3 kB and as many C++ headers, in folders."""
    for number in range(num_files):
        folder = root / f"package_{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        body = "".join(f"value_{number}_{line} = compute({line})\n" for line in range(100))
        (folder / f"module_{number}.py").write_text(body)
        (folder / f"header_{number}.hpp").write_text(body.replace("value", "int value"))


def run(*args: object) -> int | None:
    return tool.main([str(arg) for arg in args])


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_is_in_one_part_and_the_paths_alone_decide(tmp_path: Path) -> None:
    write_tree(tmp_path / "a" / "source")
    for name in ("a", "b"):  # b: the same files, written to disk in another order
        root = tmp_path / name / "source"
        if name == "b":
            for path in sorted((tmp_path / "a" / "source").rglob("*.*"), reverse=True):
                copy = root / path.relative_to(tmp_path / "a" / "source")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(path.read_text())
        run("--root", root, "--output", tmp_path / name / "out", "--min-mb", 1)
    parts = {path.name: path.read_text() for path in sorted((tmp_path / "a" / "out").iterdir())}
    assert set(parts) == {
        f"{name}_{part}.jsonl" for name in ("cpp", "python") for part in ("train", "valid")
    }
    for name, content in parts.items():
        assert (tmp_path / "b" / "out" / name).read_text() == content

    train = read(tmp_path / "a" / "out" / "python_train.jsonl")
    valid = read(tmp_path / "a" / "out" / "python_valid.jsonl")
    paths = [record["path"] for record in train + valid]
    assert len(paths) == len(set(paths)) == 400
    assert 4 <= len(valid) <= 40  # 16 expected; beyond is 3 standard deviations and more
    for record in train + valid:
        assert record["language"] == "python"
        assert record["text"] == (tmp_path / "a" / record["path"]).read_text()


def test_duplicates_links_and_other_folders_are_left_out(tmp_path: Path, capsys) -> None:
    root = tmp_path / "source"
    write_tree(root)
    (root / "copy.py").write_text((root / "package_0" / "module_0.py").read_text())
    (root / "link.py").symlink_to(root / "package_1" / "module_1.py")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "cached.py").write_text(GOOD)
    run("--root", root, "--output", tmp_path / "out", "--min-mb", 1, "--languages", "python")
    summary = capsys.readouterr().out
    assert "1 duplicate" in summary
    records = read(tmp_path / "out" / "python_train.jsonl") + read(
        tmp_path / "out" / "python_valid.jsonl"
    )
    assert len(records) == 400
    assert not list((tmp_path / "out").glob("cpp*"))


def test_a_language_stops_at_max_mb(tmp_path: Path, capsys) -> None:
    write_tree(tmp_path / "source", num_files=600)
    run("--root", tmp_path / "source", "--output", tmp_path / "out", "--min-mb", 1, "--max-mb", 1.5)
    size = sum(
        len(record["text"]) for path in (tmp_path / "out").glob("python*") for record in read(path)
    )
    assert 1.5e6 <= size < 1.51e6
    assert "beyond --max-mb" in capsys.readouterr().out


def test_too_little_source_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path / "source")
    arguments = ("--root", tmp_path / "source", "--output", tmp_path / "out")
    wanted = r"cpp: 1\.\d\d MB, and --min-mb asks for 2; python: 1\.\d\d MB, .*lower --min-mb"
    with pytest.raises(DataError, match=wanted):
        run(*arguments, "--min-mb", 2)
    with pytest.raises(DataError, match=r"\(ruby: 0\.00 MB, and --min-mb asks for 0\.1"):
        run(*arguments, "--languages", "ruby", "python")
    (tmp_path / "source" / "package_0" / "small.rb").write_text("x")
    with pytest.raises(DataError, match=r"ruby: one file.* files left out: 1 near-empty"):
        run(*arguments, "--languages", "ruby", "--min-mb", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_one_small_language_is_enough_and_a_smaller_one_is_named(tmp_path: Path, capsys) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for number in range(6):  # 25 kB each: none is drawn to be held out
        (root / f"module_{number}.py").write_text(f"value_{number} = compute()\n" * 1100)
    (root / "one.rb").write_text(GOOD)
    run("--root", root, "--output", tmp_path / "out")
    train, valid = (read(tmp_path / "out" / f"python_{part}.jsonl") for part in ("train", "valid"))
    assert (len(train), len(valid)) == (5, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "python_train.jsonl",
        "python_valid.jsonl",
    }
    assert "ruby       left out: 0.00 MB, and --min-mb asks for 0.1" in capsys.readouterr().out
    run("--root", root, "--output", tmp_path / "all", "--min-mb", 0)
    assert "ruby       left out: one file" in capsys.readouterr().out


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--root .*nowhere is not a folder"):
        run("--root", tmp_path / "nowhere", "--output", tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        run("--output", tmp_path)
    with pytest.raises(ConfigError, match=r"--valid-fraction is 1\.5"):
        run("--output", tmp_path / "out", "--valid-fraction", 1.5)
    for sizes in (
        ("--max-mb", -1),
        ("--max-mb", 0, "--min-mb", 0),
        ("--min-mb", 17),
        ("--max-mb", "nan"),
    ):
        with pytest.raises(ConfigError, match=f"{sizes[0]}"):
            run("--output", tmp_path / "out", *sizes)
