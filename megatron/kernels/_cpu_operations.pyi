VERSION: int

# Tensors are addresses, 0 where there is none. drop: address of keys, level, scale.
def kinds() -> list[str]: ...
def gelu(
    x: int, bias: int, out: int, rows: int, columns: int, is_bf16: bool, kind: str, threads: int
) -> None: ...
def gelu_backward(
    dy: int,
    x: int,
    bias: int,
    dx: int,
    d_bias: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def add(
    x: int,
    bias: int,
    residual: int,
    drop: tuple[int, int, float],
    out: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def add_norm(
    x: int,
    bias: int,
    residual: int,
    drop: tuple[int, int, float],
    out: int,
    weight: int,
    norm_bias: int,
    epsilon: float,
    normed: int,
    statistics: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def add_backward(
    dy: int,
    drop: tuple[int, int, float],
    dx: int,
    d_bias: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def norm(
    x: int,
    weight: int,
    bias: int,
    epsilon: float,
    out: int,
    statistics: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def norm_backward(
    dy: int,
    d_total: int,
    x: int,
    statistics: int,
    weight: int,
    drop: tuple[int, int, float],
    d_residual: int,
    dx: int,
    d_weight: int,
    d_norm_bias: int,
    d_bias: int,
    rows: int,
    columns: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def statistics(
    logits: int,
    rows: int,
    width: int,
    stride: int,
    columns: int,
    num_valid: int,
    log_sum_exp: int,
    picked: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
def gradient(
    logits: int,
    rows: int,
    width: int,
    stride: int,
    columns: int,
    num_valid: int,
    log_sum_exp: int,
    scale: int,
    is_bf16: bool,
    kind: str,
    threads: int,
) -> None: ...
