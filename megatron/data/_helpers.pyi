from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def blend_block(
    weights: Sequence[int], start: int, size: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]: ...
def blend_counts(weights: Sequence[int], start: int) -> list[int]: ...
