"""Text to ids: the encoder by itself, and the whole of tools/preprocess_data.py.

All sides get the same text and the same vocabulary; where a peer's ids could differ they are compared. One thread
encodes, unless a row says otherwise.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron.benchmark import peers
from megatron.benchmark.bench import Bench
from megatron.benchmark.measure import Row, Timed, measure, scaled, seconds, timed
from megatron.errors import DataError
from megatron.tokenizer.byte_pair import make_encoder
from megatron.tokenizer.json_tokenizer import definition_for_encoding, token_bytes_of
from megatron.tokenizer.special_tokens import EOD

ROOT = Path(__file__).parents[2]
NUM_COPIES = 10


def encode(bench: Bench) -> Iterator[Row]:
    """Text to ids, the memory of pieces empty at first."""
    tokenizer = bench.tokenizer()
    specials = tokenizer.special_tokens
    definition = definition_for_encoding(bench.definition, specials.keys())
    token_bytes = token_bytes_of(bench.definition)
    package = tokenizer.package
    ids = make_encoder(definition, token_bytes).encode_batch(bench.texts)[0]
    others: dict[str, Timed] = {
        f"tokenizers {peers.version('tokenizers')}": timed(
            lambda: package.encode_batch_fast(bench.texts, add_special_tokens=False)
        )
    }
    expected = [e.ids for e in package.encode_batch_fast(bench.texts, add_special_tokens=False)]
    if not np.array_equal(np.fromiter(itertools.chain(*expected), np.int32), ids):
        raise DataError("our ids differ from those of tokenizers on this text: please report it")
    note = f"{len(ids):,} ids equal to tokenizers'"
    if peers.is_installed("tiktoken"):
        encoding = peers.tiktoken_encoding(token_bytes, len(specials))
        others[f"tiktoken {peers.version('tiktoken')}"] = timed(
            lambda: [encoding.encode_ordinary(text) for text in bench.texts]
        )

    def ours(num_threads: int) -> Timed:
        def run() -> float:
            encoder = make_encoder(definition, token_bytes)
            return seconds(lambda: encoder.encode_batch(bench.texts, num_threads=num_threads))

        return run

    mb, rounds = bench.megabytes, bench.rounds
    yield from measure("encode, cold", "MB/s", mb, ours(1), others, rounds=rounds, note=note)
    yield from measure("encode, cold, 2 threads", "MB/s", mb, ours(2), {}, rounds=rounds)
    warm = make_encoder(definition, token_bytes)
    yield from measure(
        "encode, warm", "MB/s", mb, timed(lambda: warm.encode_batch(bench.texts)), {}, rounds=rounds
    )
    if peers.is_installed("gigatoken"):
        yield from _encode_gpt2(bench)


def _encode_gpt2(bench: Bench) -> Iterator[Row]:
    """The same vocabulary under GPT-2's pre-tokenizer, which gigatoken knows; it does not know StarCoder's."""
    import gigatoken
    import tokenizers

    definition = json.loads(json.dumps(bench.definition))
    definition["pre_tokenizer"] = definition["pre_tokenizer"]["pretokenizers"][-1]
    definition["added_tokens"] = []
    package = tokenizers.Tokenizer.from_str(json.dumps(definition))
    token_bytes = token_bytes_of(definition)

    def ours() -> float:
        encoder = make_encoder(definition, token_bytes)
        return seconds(lambda: encoder.encode_batch(bench.texts))

    def theirs() -> float:
        encoder = gigatoken.Tokenizer(package)
        return seconds(lambda: encoder.encode_batch(bench.texts, parallel=False))

    yield from measure(
        "encode, cold, GPT-2's expression",
        "MB/s",
        bench.megabytes,
        ours,
        {f"gigatoken {peers.version('gigatoken')}": theirs},
        rounds=bench.rounds,
    )


def preprocess(bench: Bench) -> Iterator[Row]:
    """The whole command, less the time it takes for one short document: 2 workers."""
    tokenizer_file = bench.folder / "tokenizer.json"
    tokenizer_file.write_text(json.dumps(bench.definition))
    _write_jsonl(bench.folder / "whole.jsonl", bench.texts)
    _write_jsonl(bench.folder / "start.jsonl", ["x = 1\n"])
    _write_jsonl(bench.folder / "copies.jsonl", bench.texts * NUM_COPIES)
    others = {}
    if bench.megatron_lm is not None:
        # Its StarCoder-capable tokenizer type reads a folder.
        hf = bench.folder / "hf"
        hf.mkdir(exist_ok=True)
        (hf / "tokenizer.json").write_text(json.dumps(bench.definition))
        (hf / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOD})
        )
        flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(hf)]
        others["Megatron-LM"] = _less_start(
            _command(bench, "megatron_lm", bench.megatron_lm, flags)
        )
    if bench.bigcode is not None:
        flags = ["--tokenizer-type", "TokenizerFromFile", "--tokenizer-file", str(tokenizer_file)]
        flags += ["--chunk-size", "25"]
        others["BigCode's fork"] = _less_start(_command(bench, "bigcode", bench.bigcode, flags))
    if peers.is_installed("datatrove"):
        others[f"datatrove {peers.version('datatrove')}"] = _datatrove(bench, tokenizer_file)
    ours = _command(bench, "ours", ROOT, ["--tokenizer-file", str(tokenizer_file)])
    yield from measure(
        "preprocess, 2 workers",
        "MB/s",
        bench.megabytes,
        scaled(_less_start(ours, "copies"), 1 / NUM_COPIES),
        others,
        rounds=min(bench.rounds, 3),
        note=f"ours on {NUM_COPIES} copies of the text: one ends within start-up's spread",
    )


def _write_jsonl(path: Path, texts: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _command(bench: Bench, name: str, root: Path, flags: Sequence[str]) -> Callable[[str], float]:
    """Make the timing of preprocess_data.py of a checkout on one of the files in the folder."""
    python = sys.executable if root == ROOT else bench.peer_python
    start = ["env", f"PYTHONPATH={root}", python, str(root / "tools/preprocess_data.py")]

    def run_on(which: str) -> float:
        command = [*start, *flags, "--input", str(bench.folder / f"{which}.jsonl")]
        command += ["--output-prefix", str(bench.folder / f"{name}_{which}"), "--append-eod"]
        return seconds(lambda: _run(name, [*command, "--workers", "2"]))

    return run_on


def _run(name: str, command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise DataError(f"{name} failed: {' '.join(command)}\n{result.stderr[-2000:]}")


def _less_start(run_on: Callable[[str], float], which: str = "whole") -> Timed:
    return lambda: run_on(which) - run_on("start")


_DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
folder, which, tokenizer = sys.argv[1:]
LocalPipelineExecutor(
    [JsonlReader(folder, glob_pattern=which + "_*.jsonl"),
     DocumentTokenizer(folder + "/trove_" + which, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
                       shuffle_documents=False)],
    tasks=2, workers=2, logging_dir=folder + "/trove_logs_" + which, skip_completed=False,
).run()
"""


def _datatrove(bench: Bench, tokenizer_file: Path) -> Timed:
    """A task takes whole files, so the text is laid in two."""
    for which, texts in (("whole", bench.texts), ("start", ["x = 1\n"] * 2)):
        for part in range(2):
            _write_jsonl(bench.folder / f"{which}_{part}.jsonl", texts[part::2])

    def run_on(which: str) -> float:
        command = [sys.executable, "-c", _DATATROVE, str(bench.folder), which, str(tokenizer_file)]
        return seconds(lambda: _run("datatrove", command))

    return _less_start(run_on)
