"""Attacks on the files of models, machines, metrics and texts."""

import gzip
import io
import random
import zipfile
from pathlib import Path

from tests.hostile.commands import Command, preprocess, rewrite, run_flags
from tests.hostile.mutation import NASTY_TEXTS, mutate_bytes, mutate_json, mutate_lines


def attack_model_folder(draw: random.Random, folder: Path) -> list[Command]:
    name = draw.choice(["hf", "hf", "sharded"])
    path = draw.choice(sorted((folder / name).iterdir()))
    mutate = mutate_json if path.suffix == ".json" else mutate_safetensors
    rewrite(path, mutate, draw)
    return [Command("convert_from_hf", ["--load", f"{folder}/{name}", "--save", f"{folder}/run"])]


def mutate_safetensors(draw: random.Random, data: bytes) -> bytes:
    """Damage the header as JSON, keeping its length right, or all of it."""
    if draw.random() < 0.4:
        return mutate_bytes(draw, data)
    size = int.from_bytes(data[:8], "little")
    header = mutate_json(draw, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def attack_text(draw: random.Random, folder: Path) -> list[Command]:
    file = draw.choice(
        ["a.jsonl", "a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "d.parquet"]
    )
    rewrite(folder / file, mutate_lines if file == "a.jsonl" else mutate_bytes, draw)
    if file == "b.jsonl.gz" and draw.random() < 0.3:
        lines = mutate_lines(draw, (folder / "a.jsonl").read_bytes())
        (folder / file).write_bytes(gzip.compress(lines))
    extra = draw.choice(
        [[], ["--append-eod"], ["--provenance-keys", "repo", "path"], ["--strict"], ["--shuffle"]]
    )
    output = ["--vocab-size", "300", "--output", f"{folder}/new.json"]
    return [
        preprocess(folder, file, extra=extra),
        Command("train_tokenizer", ["--input", f"{folder}/{file}", *output]),
    ]


def attack_megatron_checkpoint(draw: random.Random, folder: Path) -> list[Command]:
    files = [path for path in sorted((folder / "megatron").rglob("*")) if path.is_file()]
    path = draw.choice(files)
    rewrite(path, mutate_zip if path.suffix == ".pt" else mutate_bytes, draw)
    return [
        Command(
            "convert_from_megatron", ["--load", f"{folder}/megatron", "--save", f"{folder}/run"]
        )
    ]


def mutate_zip(draw: random.Random, data: bytes) -> bytes:
    """Damage one file of a zip, its sums made right again, or all of it."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, data)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        names = old.namelist()
        chosen = draw.choice(
            [name for name in names if name.endswith(".pkl")] if draw.random() < 0.8 else names
        )
        for name in names:
            content = old.read(name)
            new.writestr(name, mutate_bytes(draw, content) if name == chosen else content)
    return result.getvalue()


def attack_yaml(draw: random.Random, path: Path) -> None:
    """Damage a YAML file: the value of a line, or all as bytes."""
    lines = path.read_text().split("\n")
    if draw.random() < 0.5:
        rewrite(path, mutate_bytes, draw)
        return
    number = draw.randrange(len(lines) - 1)
    key = lines[number].partition(":")[0]
    values = [
        *NASTY_TEXTS,
        "[" * 1000,
        "[" * 100_000,
        "{a: " * 100_000,
        "&a [*a]",
        "!!python/object:os.system",
        "*a",
    ]
    values += [
        "2024-01-01",
        "1:30:00",
        "0o17",
        ".nan",
        ".inf",
        "-.inf",
        "1" * 5000,
        "yes",
        "~",
        "? ",
        "!!set {a}",
    ]
    lines[number] = f"{key}: {draw.choice(values)}"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


def attack_hardware(draw: random.Random, folder: Path) -> list[Command]:
    attack_yaml(draw, folder / "hardware.yaml")
    return [
        Command(
            "plan",
            ["--world-size", "2", "--hardware", f"{folder}/hardware.yaml", *run_flags(folder)],
        )
    ]


def attack_metrics(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(folder / "metrics.jsonl", mutate_lines, draw)
    return [
        Command(
            "plot_loss", ["--metrics", f"{folder}/metrics.jsonl", "--output", f"{folder}/loss.svg"]
        )
    ]
