"""What a Python function is, whatever its names: its syntax tree without docstrings and annotations, names numbered.

Two functions of one shape do the same, if what they call does; built-in names and attributes keep theirs. Knows nothing
of benchmarks.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import warnings
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
BUILT_IN = frozenset(dir(builtins))
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # of statements
LEFT_OUT = frozenset(("annotation", "returns", "type_comment", "ctx", "kind", "type_params"))
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
        found: list[ast.AST] = [ast.parse(source)]
    for node in found:  # grows as it is read; expressions hold no functions
        for field in BLOCKS:
            found += getattr(node, field, ())
    return [node for node in found if isinstance(node, Function)]


def _shape(function: Function) -> Shape:
    spelling = _Spelling(function)
    words = spelling.words
    for place, name in spelling.names:
        words[place] = spelling.numbers.get(name, repr(name))
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()
    return Shape(digest, len(words), function.lineno, function.end_lineno or function.lineno)


class _Spelling:
    """A tree in words: kinds of nodes and values of leaves, in order, with brackets for what is inside.

    numbers: those of the names that the tree binds, and of what is foreign to it, which a copy may call otherwise.
    names: the places of all names among the words; which of them have a number is known at the end.
    """

    def __init__(self, function: Function) -> None:
        self.words: list[str] = []
        self.names: list[tuple[int, str]] = []
        self.numbers: dict[str, str] = {function.name: "0"}
        self._add(function)

    def _add(self, node: ast.AST) -> None:
        self.words.append(type(node).__name__)
        if name := _own_name(node):
            self.numbers.setdefault(name, str(len(self.numbers)))
        for field, value in ast.iter_fields(node):
            if field in LEFT_OUT:
                continue
            if field == "body" and isinstance(node, Function | ast.ClassDef):
                value = _without_docstring(value)
            if isinstance(value, ast.AST):
                self._add(value)
            elif isinstance(value, list):
                self.words.append(f"{field}(")
                for item in value:
                    self._add(item) if isinstance(item, ast.AST) else self._add_leaf(item, True)
                self.words.append(")")
            else:
                self._add_leaf(value, field in ("id", "arg", "name"))

    def _add_leaf(self, value: object, may_be_name: bool) -> None:
        if may_be_name and isinstance(value, str):
            self.names.append((len(self.words), value))
        self.words.append(repr(value))


def _own_name(node: ast.AST) -> str:
    """Give the name that a node binds, or that is no built-in one: of an argument, an assignment, a function, a helper."""
    if isinstance(node, ast.Name):
        return node.id if isinstance(node.ctx, ast.Store) or node.id not in BUILT_IN else ""
    if isinstance(node, ast.arg):
        return node.arg
    return node.name if isinstance(node, Function | ast.ClassDef) else ""


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body
