from collections.abc import Sequence

def widths() -> list[int]: ...
def panel_size(width: int) -> int: ...
def pack(weight: int, out_size: int, in_size: int, packed: int, width: int) -> None: ...
def multiply(
    x: int,
    rows: int,
    weight: int,
    bias: int,
    out: int,
    in_size: int,
    out_size: int,
    has_gelu: bool,
    width: int,
    threads: int,
) -> None: ...
def highest(
    x: int, rows: int, columns: int, stride: int, best: int, places: int, width: int
) -> None: ...
def attend(
    queries: int,
    query_stride: int,
    tokens: int,
    heads: int,
    keys: int,
    values: int,
    positions: int,
    num_rows: int,
    first_row: int,
    groups: int,
    head_dim: int,
    capacity: int,
    window: int,
    out: int,
    width: int,
    threads: int,
) -> None: ...

class Decoder:
    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_groups: int,
        head_dim: int,
        ffn_size: int,
        window: int,
        epsilon: float,
        width: int,
        layers: Sequence[Sequence[int]],
    ) -> None: ...
    def run(
        self,
        x: int,
        rows: int,
        lengths: int,
        keys: Sequence[int],
        values: Sequence[int],
        capacity: int,
        cos: int,
        sin: int,
        threads: int,
    ) -> None: ...
