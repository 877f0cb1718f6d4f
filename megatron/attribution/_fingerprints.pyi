from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

class Spelling:
    def __init__(self, tokens: Sequence[bytes], is_sentinel: Sequence[bool]) -> None: ...
    def __len__(self) -> int: ...
    def text(self, tokens: npt.NDArray[np.integer]) -> bytes: ...
    def fingerprints(
        self,
        tokens: npt.NDArray[np.integer],
        ends: npt.NDArray[np.int64],
        gram: int,
        window: int,
    ) -> npt.NDArray[np.uint64]: ...
    def extend(
        self,
        tokens: npt.NDArray[np.integer],
        first: int,
        last: int,
        low: int,
        high: int,
        text: bytes,
        start: int,
        stop: int,
    ) -> tuple[int, int]: ...

def normalise(text: bytes) -> tuple[bytes, npt.NDArray[np.int64]]: ...
def grams(
    normalised: bytes, gram: int, window: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]: ...
def insert(
    blocks: npt.NDArray[np.uint64],
    first_block: int,
    num_blocks: int,
    probes: int,
    keys: npt.NDArray[np.uint64],
) -> None: ...
def contains(
    blocks: npt.NDArray[np.uint64], probes: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]: ...
def count_distinct(registers: npt.NDArray[np.uint8], keys: npt.NDArray[np.uint64]) -> None: ...
