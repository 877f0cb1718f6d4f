"""What a Python function is, whatever its names: its syntax tree without docstrings and annotations, names numbered.

Two functions of one shape do the same, if what they call does; built-in names and attributes keep theirs. Knows nothing
of benchmarks.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
BUILT_IN = frozenset(dir(builtins))
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what parsing raises


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
        return [_shape(node) for node in _functions(source)]
    except UNREADABLE:
        return []


def spelled(source: str) -> list[tuple[Shape, str]]:
    """Give the shape of every function, and its body as Python itself writes it: no needless brackets, no docstring."""
    try:
        functions = _functions(source)
        bodies = [ast.Module(_without_docstring(function.body), []) for function in functions]
        return [(_shape(f), ast.unparse(body)) for f, body in zip(functions, bodies, strict=True)]
    except UNREADABLE:
        return []


def _functions(source: str) -> list[Function]:
    with warnings.catch_warnings():  # odd escapes in somebody's code are no news
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _shape(function: Function) -> Shape:
    bound = {function.name: "0"}
    for node in ast.walk(function):
        name = _bound_name(node) or _foreign_name(node)
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


def _foreign_name(node: ast.AST) -> str:
    """Give the name of a helper or module that a node uses, which a copy may call otherwise."""
    is_foreign = isinstance(node, ast.Name) and node.id not in BUILT_IN
    return node.id if is_foreign else ""  # type: ignore[attr-defined]


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
