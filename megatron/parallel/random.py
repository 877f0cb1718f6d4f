"""Random numbers as functions of (seed, what, index): initial values by name, dropout by coordinates.

Nothing here keeps a state between calls, so no layout, order of access, recomputation or restart changes a bit.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

BLOCK_ROWS = 128  # rows of a tensor that share one generator


def derive_key(seed: int, *what: str | int) -> int:
    """Give a signed 64-bit number for a purpose, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in (seed, *what))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def fill_normal(
    out: Tensor, seed: int, name: str, *, std: float, num_columns: int, first: tuple[int, int]
) -> None:
    """Fill out [r, c] with its part of the N(0, std^2) matrix called name, which has num_columns columns.

    first is the (row, column) of out[0, 0] in that matrix. A block of rows is drawn whole by (seed, name, block) and
    then cut: a shard of rows draws only its blocks, and rows appended to a matrix change none before them.
    """
    first_row, first_column = first
    columns = slice(first_column, first_column + out.size(1))

    def fill_block(block: int) -> None:
        # The generator keeps 32 bits of its seed.
        generator = torch.Generator().manual_seed(derive_key(seed, name, block) & 0xFFFFFFFF)
        values = torch.empty(BLOCK_ROWS, num_columns).normal_(0.0, std, generator=generator)
        start = block * BLOCK_ROWS - first_row
        rows = slice(max(start, 0), min(start + BLOCK_ROWS, out.size(0)))
        out[rows].copy_(values[rows.start - start : rows.stop - start, columns])

    blocks = range(first_row // BLOCK_ROWS, -(-(first_row + out.size(0)) // BLOCK_ROWS))
    # Blocks are independent and torch frees the interpreter while it draws.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        for _ in pool.map(fill_block, blocks):
            pass
