#!/usr/bin/env python3
"""Turn text files into token files (.bin, .idx) that training, and Megatron-LM, read."""

from __future__ import annotations

import functools
import os
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import megatron.logging
from megatron.cli import (
    add_section,
    end_on_sigterm,
    make_parser,
    parse_known,
    run_tool,
    section_from,
)
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.options import TokenizerConfig
from megatron.progress import progress_bar
from megatron.tokenizer.tokenizer import build_tokenizer

EXAMPLES = """\
  python tools/preprocess_data.py --input a.jsonl b.jsonl.zst c.parquet --output-prefix data/py \\
      --tokenizer-file tokenizer.json --append-eod --workers 8 --provenance-keys repo path license
  python tools/preprocess_data.py --input code.jsonl.gz --json-keys content --output-prefix data/code \\
      --tokenizer-type GPT2BPETokenizer --vocab-file vocab.json --merge-file merges.txt --append-eod --shuffle
  python tools/preprocess_data.py --input chats.jsonl --messages-key messages --output-prefix data/chats \\
      --tokenizer-file tokenizer.json
  srun bash -c 'python tools/preprocess_data.py --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS …'"""


def main() -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_section(parser, PreprocessConfig, title="input and output")
    add_section(parser, TokenizerConfig, title="tokenizer")
    args = parse_known(parser, None)
    config = section_from(args, PreprocessConfig)
    config.check()
    megatron.logging.configure()
    # One thread a worker: the processes share the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_on_sigterm("nothing of the output was kept; run it again")
    tqdm.monitor_interval = 0  # its thread must not be there when workers are forked

    total = sum(part.stop - part.start for part in config.parts())
    tokenizer = build_tokenizer(section_from(args, TokenizerConfig))
    start = time.monotonic()
    with (
        progress_bar(total, "preprocess") as bar,
        logging_redirect_tqdm([megatron.logging.get_logger("megatron")]),
    ):
        summary = preprocess(
            config, tokenizer, on_read=bar.update, on_shuffled=functools.partial(show_shuffled, bar)
        )
    seconds = time.monotonic() - start
    speed = f"{summary.num_bytes / 1e6:,.1f} MB of text in {seconds:,.1f} s ({summary.num_bytes / 1e6 / seconds:,.1f} MB/s)"
    for key in config.keys:
        print(f"{config.prefix_of(key)}: {summary.describe(key)}; {speed}")


def show_shuffled(bar: tqdm, num_tokens: int, total: int) -> None:
    """Turn the bar of the reading into one of the shuffling that follows it."""
    if bar.total != total:
        bar.reset(total)
        bar.unit = " tokens"
        bar.set_description("shuffle", refresh=False)
    bar.update(num_tokens)


if __name__ == "__main__":
    run_tool(main)
