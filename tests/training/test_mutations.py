"""The matrix turns red for whatever makes layouts equal: each collective, partial gradient and loss scale, taken away."""

from tests.training.matrix import (
    SP,
    TP2,
)
from tests.training.mutation import Mutation

COLLECTIVES, LAYERS = "megatron/parallel/collectives.py", "megatron/parallel/layers.py"
PIPELINE, STEP = "megatron/parallel/pipeline.py", "megatron/training/step.py"
DATA_PARALLEL, CLIP = "megatron/parallel/data_parallel.py", "megatron/optimizer/clip.py"
TP2_SP = f"{TP2} {SP}"
MUTATIONS = [
    # tensor parallelism
    Mutation(
        "sum of gradients on entering the region",
        COLLECTIVES,
        "return _all_reduced(grad, ctx.group), None",
        "return grad, None",
        2,
        TP2,
        "multihead",
        "FIM",
    ),
    Mutation(
        "sum of shares on leaving the region",
        COLLECTIVES,
        "return _all_reduced(x, group)",
        "return x.clone()",
        2,
        TP2,
        "multihead",
        "FIM",
    ),
]
