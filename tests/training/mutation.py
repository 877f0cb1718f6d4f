"""Deliberate errors in what makes layouts equal, put into the source as it is imported.

A world of its own imports the package anew with one line changed, and runs a cell of the matrix. Knows nothing of what
the changed lines do.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """One change of a file of the package."""

    claim: str  # what it takes away
    file: str
    old: str
    new: str

    @property
    def lines(self) -> range:
        """Give the numbers of the lines it changes."""
        source = (ROOT / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.file} has {source.count(self.old)} {self.old!r}"
        first = source[: source.index(self.old)].count("\n") + 1
        return range(first, first + self.old.count("\n") + 1)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module from changed source."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        return compile(source.replace(self._mutation.old, self._mutation.new), self.path, "exec")


class _Finder:
    """Finds that module before the others of sys.meta_path do."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation
        self._name = mutation.file.removesuffix(".py").replace("/", ".")

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        file = str(ROOT / self._mutation.file)
        return importlib.util.spec_from_file_location(
            name, file, loader=_Loader(name, file, self._mutation)
        )


def mutated_difference(rank: int, mutation: Mutation, flags: str, file: Path) -> str | None:
    """Run the cell with the mutation, and say where it first differs from what one process sees.

    The process is of no other use afterwards. Collective over the world.
    """
    for name, module in list(sys.modules.items()):
        is_ours = name.partition(".")[0] in ("megatron", "tests") and name != __name__
        if is_ours and (getattr(module, "__file__", None) or "").endswith(".py"):
            del sys.modules[name]
    sys.meta_path.insert(0, _Finder(mutation))
    return importlib.import_module("tests.training.matrix").difference(flags, file)
