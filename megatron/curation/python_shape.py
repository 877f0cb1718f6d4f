"""What a Python function is, whatever its names: its syntax tree without docstrings and annotations, locals renamed.

Two functions of one shape do the same. Knows nothing of benchmarks.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Shape:
    """A function's digest, the number of its syntax nodes, and its lines."""

    digest: bytes
    size: int
    first_line: int
    last_line: int


def shapes(source: str) -> list[Shape]:
    """Give the shape of every function, of none if the source does not parse."""
    try:
        with warnings.catch_warnings():  # odd escapes in somebody's code are no news
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        return [_shape(node) for node in ast.walk(tree) if isinstance(node, Function)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _shape(function: Function) -> Shape:
    bound = {function.name: "0"}
    for node in ast.walk(function):
        name = _bound_name(node)
        if name:
            bound.setdefault(name, str(len(bound)))
    words = list(_words(function, bound))
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()
    return Shape(digest, len(words), function.lineno, function.end_lineno or function.lineno)


def _bound_name(node: ast.AST) -> str:
    """Give the name that a node binds: an argument, an assignment, a function inside."""
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.name if isinstance(node, Function | ast.ClassDef) else ""


def _words(node: ast.AST, bound: dict[str, str]) -> Iterator[str]:
    """Spell a tree: kinds of nodes and values of leaves, in order, with brackets for what is inside."""
    yield type(node).__name__
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment", "ctx", "kind", "type_params"):
            continue
        if field == "body" and isinstance(node, Function | ast.ClassDef):
            value = _without_docstring(value)
        if isinstance(value, list):
            yield f"{field}("
            for item in value:
                if isinstance(item, ast.AST):
                    yield from _words(item, bound)
                else:
                    yield bound.get(item, repr(item)) if isinstance(item, str) else repr(item)
            yield ")"
        elif isinstance(value, ast.AST):
            yield from _words(value, bound)
        elif field in ("id", "arg", "name"):
            yield bound.get(value, repr(value))
        else:
            yield repr(value)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body
