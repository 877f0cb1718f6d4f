from collections.abc import Sequence

class PiiScan:
    def __init__(self, prefixes: Sequence[str]) -> None: ...
    def find(self, text: bytes) -> list[tuple[int, int, int]]: ...

class Measured:
    size: int
    digits: int
    capitals: int
    small: int
    changes: float
    entropy: float
    pairs: int
    common: int

class WordMeasure:
    def __init__(self, common_pairs: Sequence[str]) -> None: ...
    def of(self, word: bytes) -> Measured: ...

def unreadable(word: bytes) -> float: ...
