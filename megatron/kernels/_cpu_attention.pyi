VERSION: int

HeadsArgument = tuple[int, int, int, int]

def kinds() -> list[str]: ...

class Call:
    def __init__(
        self,
        is_bf16: bool,
        kind: str,
        samples: int,
        heads: int,
        groups: int,
        head_dim: int,
        num_queries: int,
        num_keys: int,
        log_sums: int,
    ) -> None: ...
    def see_from(self, first_keys: int, stride: int) -> None: ...
    def drop(self, row_keys: int, first_head: int, level: int, keep_scale: float) -> None: ...
    def forward(
        self,
        query: HeadsArgument,
        key: HeadsArgument,
        value: HeadsArgument,
        out: HeadsArgument,
        threads: int,
    ) -> None: ...
    def backward(
        self,
        query: HeadsArgument,
        key: HeadsArgument,
        value: HeadsArgument,
        out: HeadsArgument,
        out_grad: HeadsArgument,
        query_grad: HeadsArgument,
        key_grad: HeadsArgument,
        value_grad: HeadsArgument,
        threads: int,
    ) -> None: ...
