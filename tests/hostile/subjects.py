"""What is attacked: files of every kind that a command line reads, and the flags themselves.

A subject damages a copy of the base files and names the commands that read them. What a command accepts is then
looked at: a dataset must be one, a sample must be readable, text must survive its tokenizer.
"""

import argparse
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from megatron import cli
from megatron.data.checksum import checksum_path
from megatron.data.indexed_dataset import HEADER, bin_path, idx_path
from megatron.options import TokenizerConfig
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.hostile.commands import (
    TEXT,
    Check,
    Command,
    dry_run,
    merge,
    nothing,
    preprocess,
    rewrite,
    run_flags,
    verify,
)
from tests.hostile.files import (
    attack_hardware,
    attack_megatron_checkpoint,
    attack_metrics,
    attack_model_folder,
    attack_text,
    attack_yaml,
)
from tests.hostile.mutation import NASTY_INTS, NASTY_TEXTS, mutate_bytes, mutate_json, mutate_lines


@dataclass(frozen=True)
class Subject:
    """One kind of hostile input: damages files in a folder, says what was done, and gives the commands that read it."""

    name: str
    attack: Callable[[random.Random, Path], list[Command]]


def must_not_pass() -> str:
    return "the files are not what they were, and verify found nothing"


def attack_index(draw: random.Random, folder: Path) -> list[Command]:
    path = idx_path(folder / "py_text_document")
    rewrite(path, mutate_index if draw.random() < 0.6 else mutate_bytes, draw)
    return _of_dataset(draw, folder)


def attack_ids(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(bin_path(folder / "py_text_document"), mutate_bytes, draw)
    return _of_dataset(draw, folder)


def mutate_index(draw: random.Random, data: bytes) -> bytes:
    """Put a nasty number, or one that is nearly right, into one field of an index."""
    changed = bytearray(data)
    _, _, _, items, offsets = HEADER.unpack(data[: HEADER.size])
    sizes, pointers = HEADER.size, HEADER.size + 4 * items
    documents = pointers + 8 * items
    place, kind = draw.choice(
        [
            (9, "<Q"),
            (17, "<B"),
            (18, "<Q"),
            (26, "<Q"),
            (sizes + 4 * draw.randrange(items), "<i"),
            (pointers + 8 * draw.randrange(items), "<q"),
            (documents + 8 * draw.randrange(offsets), "<q"),
        ]
    )
    (old,) = struct.unpack_from(kind, data, place)
    bits = 8 * struct.calcsize(kind)
    new = draw.choice([old + 1, old - 1, old * 2, -old, *NASTY_INTS, -(2**31), -(2**63)]) % (
        1 << bits
    )
    struct.pack_into(kind.upper(), changed, place, new)
    return bytes(changed) if changed != data else mutate_index(draw, data)


def _of_dataset(draw: random.Random, folder: Path) -> list[Command]:
    """Read a damaged dataset in every way; with checksums beside it, verify has to see whatever it is."""
    check: Check = must_not_pass
    if draw.random() < 0.5:
        checksum_path(folder / "py_text_document").unlink()
        check = nothing
    return [verify(folder, check), dry_run(run_flags(folder)), merge(folder)]


def attack_side_files(draw: random.Random, folder: Path) -> list[Command]:
    suffix = draw.choice([".sha256", ".provenance.arrow", ".provenance.arrow", ".origin.json"])
    path = Path(f"{folder}/py_text_document{suffix}")
    before = path.read_bytes()
    rewrite(path, mutate_bytes, draw)
    # The same lines in another order, or twice, say the same.
    is_same = suffix == ".sha256" and {*before.splitlines()} == {*path.read_bytes().splitlines()}
    lists = ["--exclude-documents", f"{folder}/optout.jsonl"]
    return [
        verify(folder, nothing if is_same else must_not_pass),
        dry_run(run_flags(folder, lists)),
        merge(folder),
    ]


def attack_unsealed_side_files(draw: random.Random, folder: Path) -> list[Command]:
    """The same where no checksum tells."""
    checksum_path(folder / "py_text_document").unlink()
    suffix, mutate = draw.choice(
        [(".provenance.arrow", mutate_bytes), (".origin.json", mutate_json)]
    )
    rewrite(Path(f"{folder}/py_text_document{suffix}"), mutate, draw)
    lists = ["--exclude-documents", f"{folder}/optout.jsonl"]
    return [verify(folder), dry_run(run_flags(folder, lists)), merge(folder)]


def attack_opt_outs(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(folder / "optout.jsonl", mutate_lines, draw)
    return [dry_run(run_flags(folder, ["--exclude-documents", f"{folder}/optout.jsonl"]))]


def attack_tokenizer(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(folder / "tokenizer.json", mutate_json, draw)
    kind = draw.choice(["TokenizerFromFile", "TokenizerFromFileWithFIM"])
    flags = ["--tokenizer-type", kind, "--tokenizer-file", f"{folder}/tokenizer.json"]
    config = TokenizerConfig(tokenizer_type=kind, tokenizer_file=f"{folder}/tokenizer.json")  # type: ignore[arg-type]
    return [*_of_tokenizer(folder, flags, config), dry_run(run_flags(folder))]


def attack_gpt2_files(draw: random.Random, folder: Path) -> list[Command]:
    if draw.random() < 0.5:
        rewrite(folder / "vocab.json", mutate_json, draw)
    else:
        rewrite(folder / "merges.txt", mutate_bytes, draw)
    files = {"vocab_file": f"{folder}/vocab.json", "merge_file": f"{folder}/merges.txt"}
    flags = ["--tokenizer-type", "GPT2BPETokenizer"]
    flags += ["--vocab-file", files["vocab_file"], "--merge-file", files["merge_file"]]
    return _of_tokenizer(folder, flags, TokenizerConfig(tokenizer_type="GPT2BPETokenizer", **files))


def attack_tokenizer_folder(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(
        folder / "hf" / draw.choice(["tokenizer.json", "tokenizer_config.json"]), mutate_json, draw
    )
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{folder}/hf"]
    config = TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=f"{folder}/hf")
    return _of_tokenizer(folder, flags, config)


def attack_sentencepiece(draw: random.Random, folder: Path) -> list[Command]:
    rewrite(folder / "pieces.model", mutate_bytes, draw)
    flags = [
        "--tokenizer-type",
        "SentencePieceTokenizer",
        "--tokenizer-model",
        f"{folder}/pieces.model",
    ]
    config = TokenizerConfig(
        tokenizer_type="SentencePieceTokenizer", tokenizer_model=f"{folder}/pieces.model"
    )
    return _of_tokenizer(folder, flags, config)


def _of_tokenizer(folder: Path, flags: Sequence[str], config: TokenizerConfig) -> list[Command]:
    command = preprocess(folder, "a.jsonl", flags, ["--append-eod"])
    return [
        Command(
            command.tool, command.argv, lambda: command.check() or is_sound(build_tokenizer(config))
        )
    ]


def is_sound(tokenizer: Tokenizer) -> str | None:
    """Say what a tokenizer does that none may: ids out of range, sentinels from text, other ids than its file says."""
    text = TEXT + "".join(tokenizer.special_tokens)
    ids = tokenizer.tokenize(text)
    if not all(0 <= number < tokenizer.vocab_size for number in (*ids, tokenizer.eod)):
        return f"ids {min(ids)} to {max(ids)} of {tokenizer.vocab_size}"
    if set(ids) & set(tokenizer.special_tokens.values()):
        return "text became a sentinel"
    package = getattr(tokenizer, "package", None)
    if isinstance(package, tokenizers.Tokenizer):
        other = package.encode(text, add_special_tokens=False).ids
        if other != ids:
            return f"ids {ids}, the package {other}"
    tokenizer.detokenize(ids)
    return None


def attack_preset(draw: random.Random, folder: Path) -> list[Command]:
    path = folder / "preset.yaml"
    attack_yaml(draw, path)
    flags = ["--config", str(path)]
    plan = ["--world-size", "2", *run_flags(folder, flags)]
    return [dry_run(run_flags(folder, flags)), Command("plan", plan)]


def attack_blend(draw: random.Random, folder: Path) -> list[Command]:
    prefix = f"{folder}/py_text_document"
    kind = draw.randrange(4)
    if kind == 0:
        group = f'"t: 0.5 0:0.5 {prefix}, 1/2 0.5:1 {prefix}"\n'
        (folder / "groups.txt").write_bytes(mutate_bytes(draw, group.encode()))
        data = ["--train-weighted-split-paths-path", f"{folder}/groups.txt"]
    elif kind == 1:
        words = ["0.5", prefix, "0.5", prefix]
        words[draw.randrange(4)] = draw.choice([*NASTY_TEXTS, str(folder), f"{prefix}.bin"])
        data = [draw.choice(["--train-data-path", "--data-path"]), *words]
    elif kind == 2:
        text = mutate_bytes(draw, f"t: 0.5 0:0.5 {prefix}, 0.5 0.5:1 {prefix}".encode())
        data = ["--train-weighted-split-paths", text.decode("utf-8", "surrogateescape")]
    else:
        parts = ["969", "30", "1"]
        parts[draw.randrange(3)] = draw.choice(NASTY_TEXTS)
        data = ["--data-path", prefix, "--split", draw.choice([",", "/", ",,"]).join(parts)]
    return [dry_run(run_flags(folder, data=data))]


def attack_flags(draw: random.Random, folder: Path) -> list[Command]:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    flags = run_flags(folder)
    for _ in range(draw.choice([1, 1, 2])):
        flags += _nasty_flag(draw, parser, folder)
    return [
        dry_run(flags),
        Command(
            "plan", ["--world-size", draw.choice(["1", "8", "512", "-1", "0", "100000"]), *flags]
        ),
    ]


def _nasty_flag(draw: random.Random, parser: argparse.ArgumentParser, folder: Path) -> list[str]:
    # Its own choices too, so that two flags meet that are each right.
    actions = [one for one in parser._actions if one.option_strings and one.nargs != 0]
    action = draw.choice(actions)
    values = [*NASTY_TEXTS, str(folder), f"{folder}/a.jsonl", f"{folder}/none"]
    numbers = ["0", "1", "2", "3", "4", "7", "8", "64", "1000", "1000000000", "0.5", "1e-9"]
    if action.choices:
        values = [*action.choices, *values[:3]]
    elif action.type in (int, float):
        values = numbers if draw.random() < 0.5 else values
    count = draw.choice([1, 1, 2, 3]) if action.nargs == "+" else 1
    return [action.option_strings[0], *(draw.choice(values) for _ in range(count))]


OTHER_FLAGS = {
    "preprocess_data": [
        "--json-keys",
        "--provenance-keys",
        "--shard",
        "--workers",
        "--chunk-size",
        "--seed",
        "--input",
    ],
    "merge_datasets": ["--input", "--seed", "--output-prefix"],
    "train_tokenizer": ["--vocab-size", "--json-key", "--max-bytes", "--input", "--output"],
    "verify": ["--vocab-size", "--tokenizer-type", "--tokenizer-file", "--tokenizer-model"],
    "convert_from_hf": ["--load", "--save"],
    "plan": [
        "--hardware",
        "--world-size",
        "--pue",
        "--carbon-intensity",
        "--document-length",
        "--rank-layouts",
    ],
    "plot_loss": ["--output", "--metrics"],
}


def attack_other_flags(draw: random.Random, folder: Path) -> list[Command]:
    tool = draw.choice(list(OTHER_FLAGS))
    name = f"{folder}/py_text_document"
    base = {
        "preprocess_data": preprocess(folder, "a.jsonl").argv,
        "merge_datasets": merge(folder).argv,
        "train_tokenizer": [
            "--input",
            f"{folder}/a.jsonl",
            "--vocab-size",
            "300",
            "--output",
            f"{folder}/new.json",
        ],
        "verify": ["data", name],
        "convert_from_hf": ["--load", f"{folder}/hf", "--save", f"{folder}/run"],
        "plan": ["--world-size", "2", *run_flags(folder)],
        "plot_loss": ["--metrics", f"{folder}/metrics.jsonl", "--output", f"{folder}/loss.svg"],
    }[tool]
    flag = draw.choice(OTHER_FLAGS[tool])
    value = draw.choice(
        [*NASTY_TEXTS, str(folder), f"{folder}/a.jsonl", f"{folder}/none/x", "2", "1/2", "70000"]
    )
    if flag.startswith(("--output", "--save")) and value.startswith(("/", "..", "~")):
        value = f"{folder}/none/{value.strip('/.~')}"  # what is attacked is not this machine
    if flag == "--workers":  # a machine is no file: what one may start is for its user to say
        value = draw.choice(["0", "-1", "nan", "", "1"])
    return [Command(tool, [*base, flag, value])]


SUBJECTS = [
    Subject("index (.idx)", attack_index),
    Subject("ids (.bin)", attack_ids),
    Subject("side files of a dataset", attack_side_files),
    Subject("side files without checksums", attack_unsealed_side_files),
    Subject("opt-out lists", attack_opt_outs),
    Subject("tokenizer.json", attack_tokenizer),
    Subject("vocab.json, merges.txt", attack_gpt2_files),
    Subject("tokenizer folders", attack_tokenizer_folder),
    Subject("SentencePiece models", attack_sentencepiece),
    Subject("presets (YAML)", attack_preset),
    Subject("blends", attack_blend),
    Subject("flags of a run", attack_flags),
    Subject("flags of other tools", attack_other_flags),
    Subject("Hugging Face folders", attack_model_folder),
    Subject("Megatron checkpoints", attack_megatron_checkpoint),
    Subject("machines (YAML)", attack_hardware),
    Subject("metrics.jsonl", attack_metrics),
    Subject("text (.jsonl, .gz, .zst, .parquet)", attack_text),
]
