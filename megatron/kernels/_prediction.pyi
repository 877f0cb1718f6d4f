from collections.abc import Sequence

VERSION: int

def kinds() -> list[str]: ...
def panel_size(kind: str) -> int: ...
def pack(
    weight: int, out_size: int, in_size: int, is_bf16: bool, packed: int, kind: str
) -> None: ...
def multiply(
    x: int,
    rows: int,
    weight: int,
    bias: int,
    out: int,
    in_size: int,
    out_size: int,
    is_bf16: bool,
    has_gelu: bool,
    kind: str,
    threads: int,
) -> None: ...
def highest(
    x: int, rows: int, columns: int, stride: int, best: int, places: int, kind: str
) -> None: ...

class Sizes:
    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_groups: int,
        head_dim: int,
        ffn_size: int,
        window: int,
        epsilon: float,
    ) -> None: ...

class Stage:
    def __init__(
        self,
        sizes: Sizes,
        is_bf16: bool,
        kind: str,
        layers: Sequence[Sequence[int]],
        embedding: tuple[int, int, int, int],
        head: tuple[int, int, int, int],
    ) -> None: ...
    def run(
        self,
        tokens: int,
        num_tokens: int,
        rows: int,
        positions: int,
        cache: tuple[Sequence[int], Sequence[int], int, int],
        rotation: tuple[int, int],
        wanted: Sequence[int] | None,
        out: int,
        threads: int,
    ) -> None: ...
