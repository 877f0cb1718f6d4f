import numpy as np
import numpy.typing as npt

def longest_matches(
    tokens: npt.NDArray[np.integer],
    places: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.uint32],
    excluded: npt.NDArray[np.int64],
    query: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]: ...
def occurrences(
    tokens: npt.NDArray[np.integer],
    places: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.uint32],
    excluded: npt.NDArray[np.int64],
    query: npt.NDArray[np.int64],
    most: int,
) -> tuple[int, npt.NDArray[np.int64]]: ...
