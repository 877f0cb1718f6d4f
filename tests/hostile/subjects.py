"""What is attacked: files of every kind that a command line reads, and the flags themselves.

A subject damages a copy of the base files and names the commands that read them. What a command accepts is then
looked at: a dataset must be one, a sample must be readable, text must survive its tokenizer.
"""

import argparse
import functools
import gzip
import importlib.util
import json
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tokenizers
import zstandard

from megatron import cli
from megatron.data.checksum import checksum_path
from megatron.data.indexed_dataset import HEADER, bin_path, idx_path
from megatron.data.verify_dataset import verify_dataset
from megatron.errors import MegatronError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import Tokenizer, build_tokenizer
from megatron.training.inputs import open_inputs
from tests.convert.runs import write_tokenizer_files
from tests.hostile.mutation import NASTY_INTS, NASTY_TEXTS, mutate_bytes, mutate_json, mutate_lines
from tests.training.corpus import make_corpus

TOOLS = Path(__file__).parents[2] / "tools"
TEXT = "def f(x):\n    return x + 12  # é\n"
Check = Callable[[], str | None]


def nothing() -> None:
    """Look at nothing."""


@dataclass(frozen=True)
class Command:
    """One use of a tool, and what to look at if it says that all is well."""

    tool: str
    argv: Sequence[str]
    check: Check = nothing


@dataclass(frozen=True)
class Subject:
    """One kind of hostile input: damages files in a folder, says what was done, and gives the commands that read it."""

    name: str
    attack: Callable[[random.Random, Path], list[Command]]


@functools.cache
def load_tool(name: str) -> ModuleType:
    """Import a file of tools/."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def call_tool(name: str) -> Callable[[Sequence[str]], int | None]:
    """Give the main of a tool; those that take no arguments read sys.argv, which the guard sets."""
    main = load_tool(name).main
    takes_argv = main.__code__.co_argcount > 0

    def call(argv: Sequence[str]) -> int | None:
        return main(argv) if takes_argv else main()

    call.__module__ = name
    return call


def make_base(folder: Path) -> None:
    """Write what all subjects start from: a tokenizer, a dataset with all side files, lists, inputs, a model."""
    from tests.convert.test_hf_import import make_theirs

    (folder / "corpus").mkdir()
    shutil.copy(make_corpus(folder / "corpus").tokenizer, folder / "tokenizer.json")
    shutil.rmtree(folder / "corpus")
    draw = random.Random(1)
    records = [
        {
            "text": TEXT * draw.randrange(1, 9) + str(number),
            "repo": f"r{number % 5}",
            "path": f"{number}.py",
        }
        for number in range(60)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(records), folder / "d.parquet", row_group_size=16
    )
    (folder / "optout.jsonl").write_bytes(
        b'{"repo": "r1"}\n{"repo": "r2", "path": "7.py"}\n{"dataset": "py_text_document", "document": 3}\n'
    )
    (folder / "preset.yaml").write_text(
        "model:\n  num-layers: 2\nhidden-size: 32\nlr: 3e-4\nbf16: true\nrampup-batch-size: null\n"
        "kernels: [auto]\ndata:\n  fim_rate: 0.5\nlr-decay-style: cosine\nwindow-size: 16\n"
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    pairs = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    ]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    make_theirs(folder / "hf", vocab_size=300)
    write_tokenizer_files(folder / "own")
    shutil.copy(folder / "own" / "tokenizer.json", folder / "hf")
    (folder / "hf" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    shutil.rmtree(folder / "own")
    make_theirs(folder / "sharded", vocab_size=300, shard_size="8KB")


def preprocess_base(folder: Path) -> None:
    """Write the dataset of the base, by its own tool."""
    from megatron.data.preprocess import PreprocessConfig, preprocess

    config = PreprocessConfig(
        input=(str(folder / "a.jsonl"),),
        output_prefix=str(folder / "py"),
        provenance_keys=("repo", "path"),
        append_eod=True,
    )
    preprocess(
        config, build_tokenizer(TokenizerConfig(tokenizer_file=str(folder / "tokenizer.json")))
    )


# ---- commands


def run_flags(
    folder: Path, extra: Sequence[str] = (), *, data: Sequence[str] | None = None
) -> list[str]:
    """Give the flags of a small run on the base."""
    data = ["--train-data-path", f"{folder}/py_text_document"] if data is None else data
    flags = "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32"
    flags += f" --train-iters 4 --lr 1e-3 --fim-rate 0.5 --tokenizer-file {folder}/tokenizer.json"
    return [*flags.split(), *data, *extra]


def dry_run(flags: Sequence[str]) -> Command:
    """Check a run and read some samples of what it accepts."""
    return Command("pretrain_gpt", ["--dry-run", *flags], lambda: read_samples(flags))


def read_samples(flags: Sequence[str]) -> str | None:
    """Read samples as training does: each is either whole or an error of ours."""
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    config = cli.config_from(cli.parse_known(parser, flags))
    inputs = open_inputs(config, config.parallel.model_parallel_size)
    if config.data.seq_length > 4096:
        return None
    for dataset in (inputs.datasets.train, *inputs.datasets.valid.values()):
        for index in (*range(40), 10**6):
            try:
                sample = dataset[index]
            except MegatronError:
                return None
            tokens = np.concatenate([sample["tokens"], sample["labels"]])
            if len(tokens) != 2 * config.data.seq_length:
                return f"sample {index} has {len(tokens)} tokens"
    return None


def verify(folder: Path, check: Check = nothing) -> Command:
    return Command(
        "verify",
        ["data", f"{folder}/py_text_document", "--tokenizer-file", f"{folder}/tokenizer.json"],
        check,
    )


def merge(folder: Path) -> Command:
    name = f"{folder}/py_text_document"
    out = f"{folder}/out_text_document"
    return Command(
        "merge_datasets", ["--input", name, name, "--output-prefix", out], lambda: whole(out)
    )


def whole(prefix: str) -> str | None:
    """Say what is wrong with a dataset that a tool wrote."""
    if not idx_path(prefix).exists():
        return f"{prefix} was not written"
    return "; ".join(verify_dataset(prefix).findings) or None


def preprocess(
    folder: Path, file: str, tokenizer: Sequence[str] = (), extra: Sequence[str] = ()
) -> Command:
    tokenizer = tokenizer or ["--tokenizer-file", f"{folder}/tokenizer.json"]
    argv = ["--input", f"{folder}/{file}", "--output-prefix", f"{folder}/new", *tokenizer, *extra]
    return Command("preprocess_data", argv, lambda: whole(f"{folder}/new_text_document"))


# ---- subjects


def rewrite(
    path: Path, mutate: Callable[[random.Random, bytes], bytes], draw: random.Random
) -> None:
    path.write_bytes(mutate(draw, path.read_bytes()))


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
    rewrite(Path(f"{folder}/py_text_document{suffix}"), mutate_bytes, draw)
    lists = ["--exclude-documents", f"{folder}/optout.jsonl"]
    return [verify(folder, must_not_pass), dry_run(run_flags(folder, lists)), merge(folder)]


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
    lines = path.read_text().split("\n")
    if draw.random() < 0.5:
        rewrite(path, mutate_bytes, draw)
    else:
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
    "plot_loss": ["--output", "--smooth"],
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
        "plot_loss": [str(folder)],
    }[tool]
    flag = draw.choice(OTHER_FLAGS[tool])
    value = draw.choice(
        [*NASTY_TEXTS, str(folder), f"{folder}/a.jsonl", f"{folder}/none/x", "2", "1/2", "70000"]
    )
    if flag == "--workers":  # a machine is no file: what one may start is for its user to say
        value = draw.choice(["0", "-1", "nan", "", "1"])
    return [Command(tool, [*base, flag, value])]


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


SUBJECTS = [
    Subject("index (.idx)", attack_index),
    Subject("ids (.bin)", attack_ids),
    Subject("side files of a dataset", attack_side_files),
    Subject("side files without checksums", attack_unsealed_side_files),
    Subject("opt-out lists", attack_opt_outs),
    Subject("tokenizer.json", attack_tokenizer),
    Subject("vocab.json, merges.txt", attack_gpt2_files),
    Subject("tokenizer folders", attack_tokenizer_folder),
    Subject("presets (YAML)", attack_preset),
    Subject("blends", attack_blend),
    Subject("flags of a run", attack_flags),
    Subject("flags of other tools", attack_other_flags),
    Subject("Hugging Face folders", attack_model_folder),
    Subject("text (.jsonl, .gz, .zst, .parquet)", attack_text),
]


def cycle(draw: random.Random) -> Iterator[Subject]:
    """Give subjects in turn, for ever."""
    while True:
        yield from draw.sample(SUBJECTS, len(SUBJECTS))
