"""Samples as training reads them: fill in the middle, and the loader's batches."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.benchmark import peers
from megatron.benchmark.bench import SEQ_LENGTH, Bench
from megatron.benchmark.measure import Row, Timed, measure, scaled, timed
from megatron.data.fim import FillInTheMiddle
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.loader import BatchLoader

SHORT = 1000  # characters of a short document


def fim(bench: Bench) -> Iterator[Row]:
    """Samples of 8K at rate 0.5; theirs decodes each chosen document and encodes its parts with tokenizers."""
    tokenizer = bench.tokenizer()
    ours = FillInTheMiddle(tokenizer, rate=0.5)
    for what, max_characters in (("", None), (f", documents of {SHORT:,} characters", SHORT)):
        packed = bench.packed(max_characters)
        num_samples = min(len(packed) // SEQ_LENGTH, 400)
        windows = [
            packed[n * SEQ_LENGTH : (n + 1) * SEQ_LENGTH].astype(np.int64)
            for n in range(num_samples)
        ]
        few = windows[: max(1, num_samples // 20)]
        factor = num_samples / len(few)
        others = {"decode, cut, encode with tokenizers": scaled(_reference_fim(bench, few), factor)}
        if bench.bigcode is not None:
            others["BigCode's permute"] = scaled(_bigcode_fim(bench, few), factor)
        num_documents = np.count_nonzero(packed == tokenizer.eod) / len(packed) * SEQ_LENGTH
        yield from measure(
            f"fill in the middle, 8K, rate 0.5{what}",
            "Mtok/s",
            num_samples * SEQ_LENGTH / 1e6,
            timed(lambda windows=windows: [ours(w, key) for key, w in enumerate(windows)]),  # type: ignore[misc]
            others,
            rounds=bench.rounds,
            note=f"{num_documents:.1f} documents a sample",
        )


def _reference_fim(bench: Bench, windows: Sequence[npt.NDArray[np.int64]]) -> Timed:
    package = bench.tokenizer().package
    rng = random.Random(0)

    def document(ids: list[int]) -> None:
        if rng.random() < 0.5 and ids:
            text = package.decode(ids, skip_special_tokens=False)
            low, high = sorted(rng.randint(0, len(text)) for _ in range(2))
            for part in (text[:low], text[low:high], text[high:]):
                package.encode(part, add_special_tokens=False)

    def run() -> None:
        for window in windows:
            for ids in np.split(window, np.flatnonzero(window == 0) + 1):
                document(ids[ids != 0].tolist())

    return timed(run)


def _bigcode_fim(bench: Bench, windows: Sequence[npt.NDArray[np.int64]]) -> Timed:
    """Take the function `permute` out of the checkout's file; its package does not import without a GPU's libraries."""
    assert bench.bigcode is not None
    path = bench.bigcode / "megatron/data/gpt_dataset.py"
    tree = ast.parse(path.read_text())
    functions: list[ast.stmt] = [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "permute"
    ]
    scope: dict[str, Any] = {"np": np}
    exec(compile(ast.Module(functions, []), str(path), "exec"), scope)
    package = bench.tokenizer().package

    class Theirs:
        def detokenize(self, ids: npt.NDArray[np.int64]) -> str:
            return package.decode(ids.tolist(), skip_special_tokens=False)

        def tokenize(self, text: str) -> list[int]:
            return package.encode(text).ids

    ids = {"suffix_tok_id": 3, "prefix_tok_id": 1, "middle_tok_id": 2, "pad_tok_id": 4}

    def run() -> None:
        rng = np.random.RandomState(0)
        for window in windows:
            for document in np.split(window, np.flatnonzero(window == 0) + 1):
                text = document[document != 0]
                if len(text):
                    scope["permute"](text, rng, 0.5, 0.5, Theirs(), truncate_or_pad=False, **ids)

    return timed(run)


_LOADER = """
import sys, time, torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
class Tokenizer:
    eod, pad, vocab_size, unique_identifiers = 0, 4, 49152, {}
prefix, length, num_samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = GPTDatasetConfig(random_seed=0, sequence_length=length, blend=([prefix], None), split="1,0,0",
    path_to_cache=None, tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
    eod_mask_loss=False, mid_level_dataset_surplus=0.005, create_attention_mask=False)
train, *_ = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()
[train[i] for i in range(num_samples)]
start = time.perf_counter()
[train[i] for i in range(num_samples)]
print(time.perf_counter() - start)
"""


def loader(bench: Bench) -> Iterator[Row]:
    """Batches of eight samples of 8K, as a training step gets them."""
    tokenizer = bench.tokenizer()
    prefix = bench.folder / "packed"
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for document in np.split(packed := bench.packed(), np.flatnonzero(packed == 0) + 1):
            if len(document):
                builder.add_document(document)
        builder.finalize()
    indexed = IndexedDataset(prefix)
    num_batches = 24
    amount = num_batches * 8 * SEQ_LENGTH / 1e6
    others: dict[str, Timed] = {}
    if version := peers.version("megatron-core"):
        others[f"megatron-core {version}'s GPTDataset"] = lambda: peers.run_megatron_core(
            _LOADER, prefix, SEQ_LENGTH, num_batches * 8
        )[0]
    for what, rate, num_workers in (
        ("load", 0.0, 0),
        ("load, FIM 0.5", 0.5, 0),
        ("load, FIM 0.5, 2 workers", 0.5, 2),
    ):
        dataset = GPTDataset(
            indexed,
            range(indexed.num_documents),
            seq_length=SEQ_LENGTH,
            seed=0,
            name="bench",
            fim=FillInTheMiddle(tokenizer, rate=rate) if rate else None,
        )
        reader = BatchLoader(dataset, micro_batch_size=8, num_workers=num_workers)
        reader.batch(0, 8)
        yield from measure(
            what,
            "Mtok/s",
            amount,
            timed(lambda reader=reader: [reader.batch(8 * n, 8) for n in range(num_batches)]),  # type: ignore[misc]
            {} if rate else others,
            rounds=bench.rounds,
        )
        reader.close()
