"""The matrix turns red for each collective, partial gradient, loss scale and offset that makes layouts equal.

Each is taken away in turn, in the source as a world imports it, and a cell of the matrix has to show it.
"""

import re

import pytest

from tests.shared_memory import BACKEND
from tests.training.matrix import Cell, Expected, Scale
from tests.training.mutation import ROOT, Mutation, mutated_difference
from tests.world import World

PARALLEL, MODEL = "megatron/parallel", "megatron/model"
STEP, PRETRAIN = "megatron/training/step.py", "megatron/training/pretrain.py"
COLLECTIVES, LAYERS = f"{PARALLEL}/collectives.py", f"{PARALLEL}/layers.py"
PIPELINE, DATA_PARALLEL = f"{PARALLEL}/pipeline.py", f"{PARALLEL}/data_parallel.py"
MASTER_WEIGHTS = f"{PARALLEL}/master_weights.py"
CROSS_ENTROPY = f"{PARALLEL}/cross_entropy.py"
CONTEXT_PARALLEL = f"{PARALLEL}/context_parallel.py"

# What is taken away: (what it is, file, source, changed source), by the cell that shows it.
TAKEN_AWAY = {
    Cell(1, "alone", "multihead", "accumulation"): [
        (
            "factor of the loss",
            PIPELINE,
            "(loss * self._loss_factor).backward()",
            "loss.backward()",
        ),
        (
            "loss scale in the gradients",
            STEP,
            "torch.full_like(correction, scale)",
            "torch.ones_like(correction)",
        ),
        (
            "tokens that carry loss",
            STEP,
            "torch.full_like(num_tokens, num_positions) / num_tokens",
            "torch.ones_like(num_tokens)",
        ),
    ],
    Cell(2, "TP2", "multihead", "FIM"): [
        (
            "sum of gradients on entering the region",
            COLLECTIVES,
            "return _all_reduced(grad, ctx.group), None",
            "return grad, None",
        ),
        (
            "sum of shares on leaving the region",
            COLLECTIVES,
            "return _all_reduced(x, group)",
            "return x.clone()",
        ),
        (
            "sum of embedding rows",
            LAYERS,
            "return reduce_from_tensor_model_parallel_region(rows, self.region.group)",
            "return rows",
        ),
        (
            "rows of the embedding that are elsewhere",
            LAYERS,
            "rows.masked_fill(elsewhere.unsqueeze(-1), 0.0)",
            "rows",
        ),
        (
            "softmax over all shards of the vocabulary",
            CROSS_ENTROPY,
            "gather_first_dim(torch.stack([log_sum_exp, target])[None], group)",
            "torch.stack([log_sum_exp, target])[None]",
        ),
        (
            "padding left out of the softmax",
            CROSS_ENTROPY,
            "num_valid = min(max(vocab_size - first_id, 0), shard_size)",
            "num_valid = shard_size",
        ),
        (
            "entering the region before the LM head",
            f"{MODEL}/gpt.py",
            "x = self.region.enter(self.final_layernorm(x))",
            "x = self.final_layernorm(x)",
        ),
        (
            "tokens counted once by a tensor parallel group",
            STEP,
            "[num_tokens / tp_size,",
            "[num_tokens,",
        ),
        (
            "loss counted once by a tensor parallel group",
            STEP,
            "loss_sum.double() / tp_size",
            "loss_sum.double()",
        ),
        (
            "copies counted once in the norm",
            "megatron/optimizer/clip.py",
            " / num_replicas(gradient)",
            "",
        ),
        (
            "a shard's own initial values",
            f"{PARALLEL}/parameter.py",
            "first[dim] = self.tp_mesh.get_local_rank() * local_shape[dim]",
            "pass",
        ),
    ],
    Cell(2, "TP2", "multiquery", "FIM"): [
        (
            "sum of partial gradients inside the region",
            COLLECTIVES,
            "return Partial() if self.size > 1 else Replicate()",
            "return Replicate()",
        ),
        (
            "sum of the key/value weight's gradients",
            LAYERS,
            "local_tensor(self.weight, self.region.inside_grad)",
            "local_tensor(self.weight, Replicate())",
        ),
        (
            "sum of the key/value bias' gradients",
            LAYERS,
            "local_tensor(self.bias, self.region.inside_grad)",
            "local_tensor(self.bias, Replicate())",
        ),
    ],
    Cell(2, "TP2", "multihead", "recompute"): [
        (
            "a process's own heads in dropout",
            f"{MODEL}/attention.py",
            "self.site),\n            self.share.first_head,",
            "self.site),\n            0,",
        ),
    ],
    Cell(4, "TP4", "grouped", "FIM"): [
        (
            "a process's own group of heads",
            f"{MODEL}/attention.py",
            "first = self.share.first_group * rows_per_group",
            "first = 0",
        ),
    ],
    Cell(2, "TP2 SP", "multihead", "FIM"): [
        (
            "join of the sequence",
            COLLECTIVES,
            "        return gather_first_dim(x, group)",
            "        return torch.cat([x] * group.size())",
        ),
        (
            "sum of gradients on joining the sequence",
            COLLECTIVES,
            "return reduce_scatter_first_dim(grad, ctx.group), None",
            "return grad.chunk(ctx.group.size())[ctx.group.rank()], None",
        ),
        (
            "sum of shares on cutting the sequence",
            COLLECTIVES,
            "        return reduce_scatter_first_dim(x, group)",
            "        return x.chunk(group.size())[group.rank()].clone()",
        ),
        (
            "join of gradients on cutting the sequence",
            COLLECTIVES,
            "return gather_first_dim(grad, ctx.group), None",
            "return torch.cat([grad] * ctx.group.size()), None",
        ),
        (
            "sum of embedding rows, a piece of the sequence each",
            LAYERS,
            "return reduce_scatter_to_sequence_parallel_region(rows, self.region.group)",
            "return rows.chunk(self.region.size)[self.region.rank]",
        ),
        (
            "sum of partial gradients outside the region",
            COLLECTIVES,
            "return Partial() if self.sequence_parallel and self.size > 1 else Replicate()",
            "return Replicate()",
        ),
        (
            "sum of a bias' gradients",
            LAYERS,
            "local_tensor(self.bias, self.region.outside_grad)",
            "local_tensor(self.bias, Replicate())",
        ),
        (
            "sum of the norms' gradients",
            f"{MODEL}/transformer.py",
            "grad = self.region.outside_grad",
            "grad = Replicate()",
        ),
        (
            "sum of the positions' gradients",
            f"{MODEL}/embedding.py",
            "local_tensor(self.weight, self.region.outside_grad)",
            "local_tensor(self.weight, Replicate())",
        ),
        (
            "a piece's own positions",
            COLLECTIVES,
            "return self.rank * num_local_positions if self.sequence_parallel else 0",
            "return 0",
        ),
    ],
    Cell(2, "TP2 SP", "multiquery", "accumulation"): [
        (
            "sum of a lone process's partial gradients",
            MASTER_WEIGHTS,
            "dist.all_reduce(whole, group=self._tp_group)",
            "pass",
        ),
        (
            "gradients of micro-batches before",
            MASTER_WEIGHTS,
            "local_part(self.parameter.grad).add_(grad)",
            "pass",
        ),
    ],
    Cell(2, "TP2 SP", "multihead", "recompute"): [
        (
            "a piece's own positions in dropout",
            f"{MODEL}/gpt.py",
            "inside.chunk(self.region.size)[self.region.rank]",
            "inside.chunk(self.region.size)[0]",
        ),
    ],
    Cell(2, "CP2", "multiquery", "FIM"): [
        (
            "a share's own positions",
            CONTEXT_PARALLEL,
            "numbers = (self.rank, 2 * self.size - 1 - self.rank)",
            "numbers = (0, 2 * self.size - 1)",
        ),
        (
            "keys of all shares of the sequence",
            CONTEXT_PARALLEL,
            "pairs = gather_from_sequence_parallel_region(x, self.group)",
            "pairs = torch.cat([x] * self.size)",
        ),
        ("keys in order", CONTEXT_PARALLEL, "pairs[:, 1].flip(0)", "pairs[:, 1]"),
        (
            "sum of the keys' gradients over shares of the sequence",
            COLLECTIVES,
            "return reduce_scatter_first_dim(grad, ctx.group), None",
            "return grad.chunk(ctx.group.size())[ctx.group.rank()], None",
        ),
        (
            "positions of the model that are a share's own",
            f"{MODEL}/gpt.py",
            "positions = self.cp.positions(shape[1], x.device)",
            "positions = torch.arange(shape[1])",
        ),
    ],
    Cell(2, "CP2", "multihead", "recompute"): [
        (
            "a chunk's own rows in dropout",
            f"{MODEL}/attention.py",
            "keys.inside[chunk.rows]",
            "keys.inside[: len(chunk.positions)]",
        ),
    ],
    Cell(2, "CP2", "multihead", "documents"): [
        (
            "a chunk's own starts of documents",
            f"{MODEL}/gpt.py",
            "starts[:, rows]",
            "starts[:, : len(positions)]",
        ),
    ],
    Cell(4, "CP2 DP2 sharded", "multiquery", "FIM"): [
        (
            "samples that those with other shares of them read too",
            f"{PARALLEL}/context.py",
            "self.rank // (self.tp_size * self.cp.size) % self.dp_size",
            "self.rank // self.tp_size % self.dp_size",
        ),
    ],
    Cell(2, "DP2", "multihead", "FIM"): [
        (
            "sum, not mean, over data parallel processes",
            DATA_PARALLEL,
            "module.set_gradient_divide_factor(1.0)",
            "pass",
        ),
        (
            "sum of gradients over copies",
            DATA_PARALLEL,
            "mesh=context.dp_mesh",
            'mesh=context.mesh["dp_shard"]',
        ),
        ("sum of losses, tokens and norms over the world", STEP, "dist.all_reduce(stats)", "pass"),
        (
            "a data parallel process's own samples",
            PRETRAIN,
            "dp_rank=context.dp_rank,",
            "dp_rank=0,",
        ),
    ],
    Cell(2, "DP2 sharded", "multihead", "accumulation"): [
        (
            "sum of gradients over shards",
            DATA_PARALLEL,
            "mesh=context.dp_mesh",
            'mesh=context.mesh["dp_replicate"]',
        ),
        (
            "gradients of all micro-batches in the sum",
            PIPELINE,
            "is_last_micro_batch=number == len(micro_batches)",
            "is_last_micro_batch=number == 1",
        ),
    ],
    Cell(2, "PP2", "multihead", "FIM"): [
        (
            "factor of the loss in a pipeline",
            PIPELINE,
            "(token_losses * mask).sum() * self._loss_factor",
            "(token_losses * mask).sum()",
        ),
        (
            "factor of the reported loss",
            PIPELINE,
            "total = self._run_schedule(batch, train=True) / loss_factor",
            "total = self._run_schedule(batch, train=True)",
        ),
        (
            "sum of the tied embedding's gradients",
            PIPELINE,
            "dist.all_reduce(total, group=self._group)",
            "pass",
        ),
        (
            "tokens counted by the last stage only",
            STEP,
            "if not parts.pipeline.has_last_stage:",
            "if False:",
        ),
        (
            "tied embedding counted once in the norm",
            PRETRAIN,
            "is_copy = tied_embedding is not None and not pipeline.has_first_stage",
            "is_copy = False",
        ),
    ],
    # where fully_shard sums: MasterWeights takes gradients before a schedule can scale them
    Cell(4, "PP2 DP2", "multihead", "FIM"): [
        (
            "gradients that no schedule scales",
            PIPELINE,
            '"scale_grads": False',
            '"scale_grads": True',
        ),
    ],
    Cell(2, "PP2 ZBV", "multihead", "FIM"): [
        (
            "sum of the tied embedding's gradients in one process",
            PIPELINE,
            "total.add_(local_part(follower.grad))",
            "pass",
        ),
        (
            "tied embedding that follows the trained one",
            PIPELINE,
            "local_part(follower).copy_(local_part(self._copies[0]))",
            "pass",
        ),
    ],
}
MUTATIONS = [
    (cell, Mutation(*change)) for cell, changes in TAKEN_AWAY.items() for change in changes
]


@pytest.fixture(scope="module")
def scale(request):
    return Scale.asked(request.config, num_steps=2)


@pytest.fixture(scope="module")
def expected(memory_world, corpus, scale, tmp_path_factory):
    return Expected(memory_world, corpus, scale, tmp_path_factory.mktemp("expected"))


@pytest.fixture
def differences(corpus, scale, expected):
    """Give what each process of a cell finds to differ from one process, with a mutation."""

    def find(cell, mutation):
        mutant = World(cell.size, BACKEND)  # of no use to anybody else
        try:
            flags = cell.command(corpus, scale)
            return mutant.run(mutated_difference, mutation, flags, expected.file(cell))
        finally:
            mutant.close(kill=True)

    return find


@pytest.mark.parametrize("cell", TAKEN_AWAY, ids=str)
def test_nothing_differs_where_nothing_was_taken_away(differences, cell):
    harmless = Mutation("nothing", STEP, "def train_step(", "def train_step(")
    assert not any(differences(cell, harmless))


@pytest.mark.parametrize(
    ("cell", "mutation"), MUTATIONS, ids=[mutation.claim for _, mutation in MUTATIONS]
)
def test_the_matrix_shows_that_something_was_taken_away(differences, cell, mutation):
    assert any(differences(cell, mutation)), f"nothing differs without: {mutation.claim}"


# A call of a collective of the spine, or a gradient that is declared as partial.
VITAL = re.compile(
    r"dist\.(all_|reduce|broadcast|gather|scatter)|(gather|reduce_scatter)_first_dim\("
    r"|_all_reduced\(|\.(in|out)side_grad\b|_parallel_region\(\w+, \w"
)
WITHOUT_MUTATION = {
    # each of these serves several that are taken away one by one
    "_all_gather = getattr(dist",
    "_reduce_scatter = getattr(dist",
    "    dist.all_reduce(out, group=group)",
    "_parallel_region(x, self.group)",
    # change no number; of objects: tests/parallel/test_agreement.py and test_context.py
    "_object(",
    "_object_list(",
    "dist.all_reduce(torch.zeros(1, device=context.device), group=context.pp_group)",
}


def test_every_collective_and_every_partial_gradient_is_taken_away_once():
    covered = {(mutation.file, line) for _, mutation in MUTATIONS for line in mutation.lines}
    files = [*ROOT.glob(f"{PARALLEL}/*.py"), *ROOT.glob(f"{MODEL}/*.py"), ROOT / STEP]
    missing = []
    for file in files:
        name = str(file.relative_to(ROOT))
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            is_vital = VITAL.search(line.partition("#")[0]) and "def " not in line
            is_exempt = any(text in line for text in WITHOUT_MUTATION)
            if is_vital and not is_exempt and (name, number) not in covered:
                missing.append(f"{name}:{number}: {line.strip()}")
    assert not missing, "\n".join(missing)
