"""What a sandbox is given and what it gives back. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class Limits:
    """Of one candidate."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory: int = 1 << 30  # bytes that a process may write to, its addresses, and what all take
    file_size: int = 16 << 20
    num_processes: int = 20  # threads too
    num_files: int = 64
    disk: int = 32 << 20  # bytes of /tmp


@dataclass(frozen=True)
class Equipment:
    """What a worker has beyond Python's standard library, and what of its limits must be wider for that."""

    mounts: tuple[str, ...] = ()  # files and folders to see, read-only
    packages: tuple[str, ...] = ()  # folders of Python packages, seen and searched
    preloaded: tuple[str, ...] = ()  # modules loaded before the first trial
    # no: some programs reserve more addresses than the machine has memory
    bounds_addresses: bool = True
    has_processes: bool = False  # a /proc that shows the trial's own processes and nothing else
    memory: int = 0  # from here: at least
    cpu_seconds: int = 0
    num_processes: int = 0
    num_files: int = 0
    disk: int = 0

    def __or__(self, other: Equipment) -> Equipment:
        """Give what serves both."""
        values: dict[str, object] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "bounds_addresses":
                values[field.name] = mine and theirs
            elif field.name == "has_processes":
                values[field.name] = mine or theirs
            elif isinstance(mine, tuple):
                values[field.name] = tuple(dict.fromkeys((*mine, *theirs)))
            else:
                values[field.name] = max(mine, theirs)
        return Equipment(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trial:
    """A Python program and the tests that call its functions."""

    kind: ClassVar[str] = "calls"
    extra_seconds: ClassVar[float] = 0.0
    program: str
    setup: str  # what the tests need beside the candidate; runs with them
    tests: str
    entry_points: tuple[str, ...]  # names that the tests call and the program defines


@dataclass(frozen=True)
class Step:
    """A command to run in the folder of a program."""

    command: tuple[str, ...]
    environment: dict[str, str]
    wall_seconds: float
    cpu_seconds: int
    memory: int
    bounds_addresses: bool
    is_test: bool  # its end is the verdict; else it prepares, and what fails is no program
    failure: str = ""  # an expression that says so in what it prints, where its exit code does not


@dataclass(frozen=True)
class ProgramTrial:
    """A program of any language that holds its own tests."""

    kind: ClassVar[str] = "program"
    files: dict[str, str]
    steps: tuple[Step, ...]

    @property
    def extra_seconds(self) -> float:
        """Give how long its commands may take: the sandbox's own limit comes on top."""
        return sum(step.wall_seconds for step in self.steps)


@dataclass(frozen=True)
class ContextTrial:
    """A snippet of Python and the program that puts it into a context, runs that with `exec`, and tests what it left."""

    kind: ClassVar[str] = "context"
    extra_seconds: ClassVar[float] = 0.0
    context: str
    solution: str
    is_apart: bool  # the tests run in the judge; else beside the snippet, which may then forge its verdict


AnyTrial = Trial | ProgramTrial | ContextTrial


@dataclass(frozen=True)
class Verdict:
    """How a trial ended.

    outcome: passed; wrong (a test failed); error (an exception); syntax; timeout-wall; timeout-cpu; exited (the
    process ended early); memory (its processes took too much together); no-plain-value (it returned an object of its
    own); forged (what no honest program says or does); unsupported (the tests cannot be run this way); not-here (the
    task cannot be judged on this machine).
    is_proven: whether only what is right can bring this about.
    """

    outcome: str
    detail: str
    seconds: float
    is_proven: bool = True

    @property
    def is_passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def is_timeout(self) -> bool:
        return self.outcome.startswith("timeout")
