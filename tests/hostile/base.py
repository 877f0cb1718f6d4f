"""The files that all hostile input starts from: small, of every kind that a command line reads, and right."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import zstandard

from megatron.options import TokenizerConfig
from megatron.planning.hardware import read_hardware, write_hardware
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.convert.megatron_checkpoint import write_megatron
from tests.convert.runs import model_config, whole_weights, write_tokenizer_files
from tests.hostile.commands import TEXT
from tests.training.corpus import make_corpus


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
    config = model_config(num_layers=2, hidden_size=24, ffn_hidden_size=28, num_attention_heads=4)
    (folder / "megatron").mkdir()
    write_megatron(folder / "megatron", whole_weights(config), config, tp=2)
    write_hardware(read_hardware("a100-80gb"), folder / "hardware.yaml")
    rows = [{"iteration": number, "lm_loss": 9.0 - number, "skipped": 0} for number in range(1, 6)]
    rows.append({"iteration": 5, "validation": "valid", "lm_loss": 5.0, "ppl": 148.4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_sentencepiece(folder)


def preprocess_base(folder: Path) -> None:
    """Write the dataset of the base, by its own tool."""
    from megatron.data.preprocessing.options import PreprocessConfig
    from megatron.data.preprocessing.preprocess import preprocess

    config = PreprocessConfig(
        input=(str(folder / "a.jsonl"),),
        output_prefix=str(folder / "py"),
        provenance_keys=("repo", "path"),
        append_eod=True,
    )
    preprocess(
        config, build_tokenizer(TokenizerConfig(tokenizer_file=str(folder / "tokenizer.json")))
    )


def _write_sentencepiece(folder: Path) -> None:
    import sentencepiece

    (folder / "text").write_text("".join(f"{TEXT}{number} {number * 7}\n" for number in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "pieces"),
        vocab_size=320,
        byte_fallback=True,
        minloglevel=2,
    )
