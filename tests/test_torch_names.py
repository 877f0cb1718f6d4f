"""Private names of torch, which any release may take away: each is there, and a missing one is told with who uses it."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.pipelining import PipelineStage

MEGATRON = Path(__file__).parents[1] / "megatron"
# Our classes that stand on torch's, whose private methods they call by super().
DERIVED = {
    "parallel/pipeline.py": PipelineStage,
    "launching/agent.py": LocalElasticAgent,
}
# Not in every release; whoever uses them does without them.
OPTIONAL = {"_get_init_p2p_neighbors_ops"}  # up to torch 2.14


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def dotted(node: ast.expr) -> str | None:
    """Give the text of a.b.c, None for anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def private_names(source: str) -> Iterator[str]:
    """Give the dotted private names of torch that a file imports or uses."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for one in node.names:
                name = f"{node.module}.{one.name}"
                if any(map(is_private, name.split("."))):
                    yield name
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        if name is not None and name.startswith("torch.") and is_private(name.split(".")[-1]):
            yield name


def calls_of_super(source: str) -> Iterator[str]:
    """Give the private methods that a file calls by super()."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Name) and function.id == "super" and is_private(node.attr):
                yield node.attr


def is_there(name: str) -> bool:
    """Whether a dotted name of torch can be reached, by attributes or as a module."""
    found = torch
    parts = name.split(".")
    for end in range(2, len(parts) + 1):
        if not hasattr(found, parts[end - 1]):
            try:
                importlib.import_module(".".join(parts[:end]))
            except ImportError:
                return False
        found = getattr(found, parts[end - 1])
    return True


def test_every_private_name_of_torch_that_is_used_is_there():
    used = {
        (name, str(path.relative_to(MEGATRON)))
        for path in MEGATRON.rglob("*.py")
        for name in private_names(path.read_text())
    }
    assert len(used) > 10
    missing = sorted(f"{name}, which {path} uses" for name, path in used if not is_there(name))
    assert not missing, f"torch {torch.__version__} does not have {'; '.join(missing)}"


@pytest.mark.parametrize("path", DERIVED)
def test_every_private_method_that_is_called_by_super_is_there(path):
    used = set(calls_of_super((MEGATRON / path).read_text()))
    assert used
    missing = [one for one in used - OPTIONAL if not hasattr(DERIVED[path], one)]
    assert not missing, f"{DERIVED[path].__name__} of torch {torch.__version__} lost {missing}"


def test_a_name_that_is_gone_is_found():
    source = (
        "from torch._gone import one\ntorch.ops.aten._no_such_thing(x)\ntorch._foreach_add_(x)\n"
    )
    assert [is_there(name) for name in private_names(source)] == [False, False, True]
    assert list(calls_of_super("super()._gone()\nsuper().there()")) == ["_gone"]
