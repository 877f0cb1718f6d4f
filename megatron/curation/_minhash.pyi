from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def shingle_hashes(text: str, mode: int, ngram: int) -> npt.NDArray[np.uint64]: ...
def signatures(
    texts: Sequence[str], mode: int, ngram: int, num_permutations: int, seed: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]: ...
def band_keys(
    signatures: npt.NDArray[np.uint32], bands: int, rows: int
) -> npt.NDArray[np.uint64]: ...
def unite(
    parents: npt.NDArray[np.int64], first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> None: ...
def roots(
    parents: npt.NDArray[np.int64], elements: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]: ...
