"""The languages of MultiPL-E: what compiles and runs them, where that is on this machine, and whether it works.

Commands are those of MultiPL-E's own evaluation, with paths made real: a sandbox has no /etc, so what Debian's
alternatives or rustup's proxies stand for is found outside.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron.evaluation.isolation.trial import Equipment, Limits, ProgramTrial, Step

GIGABYTE = 1 << 30
NUM_FILES = 256
SEARCHED = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = {"PATH": SEARCHED, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
PROBE_SECONDS = 20.0
# Of /etc: Debian's choices among programs and libraries, and settings that a tool does not start without.
SETTINGS = ("alternatives", "R", "java-*", "mono", "racket", "ldc2.conf")
LUA_PATH = "/usr/share/lua/5.4/?.lua;/usr/share/lua/5.3/?.lua;/usr/share/lua/5.1/?.lua;;"
JAVA_CLASSES = ".:/usr/share/java/javatuples.jar:/usr/multiple/javatuples-1.2.jar"


@dataclass(frozen=True)
class Toolchain:
    """How programs of one language run. {file} in a command is the source, {NAME} the tool of that name."""

    language: str
    title: str
    file: str
    tools: Mapping[str, tuple[str, ...]]  # a name: programs that do it, the first that is there
    run: tuple[str, ...]
    probe: str  # a program that ends well where all is in place
    compile: tuple[str, ...] = ()
    debian: str = ""  # packages that have it
    environment: Mapping[str, str] | None = None
    failure: str = (
        ""  # an expression: what a program prints whose tests failed though its exit code is 0
    )
    bounds_addresses: bool = True
    has_processes: bool = False
    memory: int = GIGABYTE  # to run in, at least
    compile_memory: int = 2 * GIGABYTE
    compile_seconds: int = 30
    start_seconds: float = 0.0  # that the runtime itself takes, more than others
    num_processes: int = 24
    disk: int = 32 << 20


TOOLCHAINS: Mapping[str, Toolchain] = {
    one.language: one
    for one in (
        Toolchain("sh", "Bash", "x.sh", {"bash": ("bash",)}, ("{bash}", "{file}"), "exit 0\n", debian="bash"),
        Toolchain(
            "cpp", "C++", "x.cpp", {"c++": ("g++", "clang++")}, ("./x",),
            "#include<bits/stdc++.h>\nint main() { }\n",
            compile=("{c++}", "{file}", "-o", "x", "-std=c++17"), debian="g++",
        ),
        Toolchain(
            "cs", "C#", "x.cs", {"csc": ("csc", "mcs"), "mono": ("mono",)}, ("{mono}", "x.exe"),
            "using System;\nusing System.Numerics;\nclass Problem { public static void Main(string[] a) { } }\n",
            compile=("{csc}", "/d:DEBUG", "-r:System.Numerics.dll", "{file}", "/out:x.exe"),
            environment={"MONO_TRACE_LISTENER": "Console.Error"}, debian="mono-mcs libmono-system-numerics4.0-cil",
            failure="DefaultTraceListener.Fail|Unhandled Exception", has_processes=True, bounds_addresses=False, start_seconds=2.0,
        ),
        Toolchain(
            "d", "D", "x.d", {"d": ("ldc2", "dmd")}, ("./x",), "void main() { }\nunittest { assert(1 == 1); }\n",
            compile=("{d}", "-unittest", "-of=x", "{file}"), debian="ldc",
        ),
        Toolchain(
            "go", "Go", "x_test.go", {"go": ("go",)}, ("{go}", "test", "{file}"),
            'package x\nimport "testing"\nfunc TestX(t *testing.T) { }\n', debian="golang-go",
            environment={"GOCACHE": "/tmp/go", "GOPATH": "/tmp/gopath", "GO111MODULE": "off", "GOFLAGS": "-vet=off -p=4", "CGO_ENABLED": "0"},
            bounds_addresses=False, memory=2 * GIGABYTE, start_seconds=60.0, num_processes=128, disk=512 << 20,
        ),
        Toolchain(
            "java", "Java", "Problem.java", {"javac": ("javac",), "java": ("java",)},
            ("{java}", "-ea", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx512m", "-cp", JAVA_CLASSES, "Problem"),
            "import org.javatuples.*;\nclass Problem { public static void main(String[] a) { } }\n",
            compile=("{javac}", "-J-XX:TieredStopAtLevel=1", "-J-Xmx512m", "-encoding", "UTF8", "-cp", JAVA_CLASSES, "-d", ".", "{file}"),
            debian="openjdk-17-jdk-headless libjavatuples-java", has_processes=True, bounds_addresses=False, memory=2 * GIGABYTE,
            start_seconds=3.0, num_processes=128,
        ),
        Toolchain("js", "JavaScript", "x.js", {"node": ("node",)}, ("{node}", "{file}"), "require('node:assert').ok(true);\n",
                  debian="nodejs", bounds_addresses=False, start_seconds=1.0, num_processes=64),
        Toolchain("jl", "Julia", "x.jl", {"julia": ("julia",)}, ("{julia}", "{file}"), "using Test\n@testset begin\n@test(1 == 1)\nend\n",
                  debian="", bounds_addresses=False, memory=2 * GIGABYTE, start_seconds=10.0, num_processes=64),
        Toolchain("lua", "Lua", "x.lua", {"lua": ("lua", "lua5.4", "lua5.3")}, ("{lua}", "{file}"), "require('luaunit')\n",
                  environment={"LUA_PATH": LUA_PATH}, debian="lua5.4 lua-unit"),
        Toolchain("php", "PHP", "x.php", {"php": ("php",)}, ("{php}", "{file}"), "<?php\n", debian="php-cli", failure="PHP Parse error"),
        Toolchain("pl", "Perl", "x.pl", {"perl": ("perl",)}, ("{perl}", "{file}"), "use Test::Deep;\n", failure="ERROR",
                  debian="perl libtest-deep-perl"),
        Toolchain("py", "Python", "x.py", {}, (), ""),  # its tests run in the judge
        Toolchain("r", "R", "x.r", {"R": ("Rscript",)}, ("{R}", "{file}"), "stopifnot(identical(1, 1))\n", debian="r-base-core",
                  start_seconds=3.0),
        Toolchain("rb", "Ruby", "x.rb", {"ruby": ("ruby",)}, ("{ruby}", "{file}"),
                  "require 'test/unit'\nclass TestX < Test::Unit::TestCase\ndef test_x\nassert_equal(1, 1)\nend\nend\n",
                  debian="ruby ruby-test-unit"),
        Toolchain("rkt", "Racket", "x.rkt", {"racket": ("racket",)}, ("{racket}", "{file}"), "#lang racket\n(require rackunit)\n",
                  debian="racket", failure=r"\S", has_processes=True, bounds_addresses=False, start_seconds=3.0),
        Toolchain("rs", "Rust", "x.rs", {"rustc": ("rustc",)}, ("./x",), "fn main() { }\n",
                  compile=("{rustc}", "--sysroot", "{sysroot}", "{file}", "-o", "x"), debian="rustc", has_processes=True, bounds_addresses=False,
                  num_processes=64, disk=128 << 20),
        Toolchain("scala", "Scala", "x.scala", {"scalac": ("scalac",), "scala": ("scala",)}, ("{scala}", "-cp", ".", "Problem"),
                  "object Problem extends App { assert(1 == 1) }\n", compile=("{scalac}", "-d", ".", "{file}"), debian="scala",
                  failure="Exception", has_processes=True, bounds_addresses=False, memory=2 * GIGABYTE, compile_seconds=60,
                  start_seconds=5.0, num_processes=128),
        Toolchain("swift", "Swift", "x.swift", {"swiftc": ("swiftc",)}, ("./x",), "assert(1 == 1)\n",
                  compile=("{swiftc}", "{file}", "-o", "x"), bounds_addresses=False, compile_seconds=60, num_processes=64, disk=128 << 20),
        Toolchain("ts", "TypeScript", "x.ts", {"tsc": ("tsc",), "node": ("node",)}, ("{node}", "x.js"),
                  "declare var require: any;\nrequire('node:assert').ok(true);\n",
                  compile=("{node}", "{tsc}", "--target", "esnext", "{file}"), debian="node-typescript nodejs",
                  bounds_addresses=False, start_seconds=1.0, num_processes=64),
    )
}  # fmt: skip
ALIASES = {
    "python": "py", "notypes.py": "py", "bash": "sh", "csharp": "cs", "humaneval_to_dlang.py": "d", "go_test.go": "go",
    "javascript": "js", "julia": "jl", "perl": "pl", "humaneval_to_r.py": "r", "ruby": "rb", "racket": "rkt", "rust": "rs",
    "typescript": "ts",
}  # fmt: skip


def language_of(name: str) -> str:
    """Give the short name of a language. Raises ValueError for one that nothing here runs."""
    name = ALIASES.get(name, name)
    if name not in TOOLCHAINS:
        raise ValueError(f"language is {name!r}; known are {', '.join(TOOLCHAINS)}")
    return name


@dataclass(frozen=True)
class Installed:
    """A toolchain on this machine."""

    toolchain: Toolchain
    paths: Mapping[str, str]  # of its tools, and what else its commands name
    mounts: tuple[str, ...]

    @classmethod
    def find(cls, language: str) -> Installed | None:
        """Find a language's tools, or None where one is missing."""
        toolchain = TOOLCHAINS[language]
        paths: dict[str, str] = {}
        libraries: list[str] = []
        mounts = set[str]()
        for name, programs in toolchain.tools.items():
            found = next((path for path in map(shutil.which, programs) if path), None)
            if found is None:
                return None
            if name == "rustc":
                sysroot = _printed([found, "--print", "sysroot"]).strip()
                if not sysroot:
                    return None
                paths["sysroot"], found = sysroot, f"{sysroot}/bin/rustc"
                mounts.add(sysroot)
            paths[name] = str(Path(found).resolve())
            libraries.append(str(Path(paths[name]).parent.parent / "lib"))
            mounts.update(_beside(Path(paths[name])))
        # a library beside its program is found by /proc, which a sandbox has not
        paths["libraries"] = ":".join(sorted(set(libraries) - {"/usr/lib"}))
        return cls(toolchain, paths, tuple(sorted(mounts)))

    @property
    def equipment(self) -> Equipment:
        """Give what a sandbox must have."""
        toolchain = self.toolchain
        is_compiled = bool(toolchain.compile)
        return Equipment(
            mounts=self.mounts,
            bounds_addresses=toolchain.bounds_addresses,
            has_processes=toolchain.has_processes,
            num_files=NUM_FILES,
            memory=max(toolchain.memory, toolchain.compile_memory if is_compiled else 0),
            cpu_seconds=max(toolchain.compile_seconds, int(toolchain.start_seconds) + 30),
            num_processes=toolchain.num_processes + 8,
            disk=toolchain.disk,
        )

    def trial(self, source: str, limits: Limits) -> ProgramTrial:
        """Give the trial of a program."""
        toolchain = self.toolchain
        steps = []
        environment = {**ENVIRONMENT, **(toolchain.environment or {})}
        if self.paths["libraries"]:
            environment["LD_LIBRARY_PATH"] = self.paths["libraries"]
        if toolchain.compile:
            seconds = toolchain.compile_seconds
            steps.append(
                Step(
                    self._command(toolchain.compile), environment, 2.0 * seconds, seconds,
                    toolchain.compile_memory, toolchain.bounds_addresses, is_test=False,
                )
            )  # fmt: skip
        steps.append(
            Step(
                self._command(toolchain.run), environment, limits.wall_seconds + toolchain.start_seconds,
                limits.cpu_seconds + int(toolchain.start_seconds), max(limits.memory, toolchain.memory),
                toolchain.bounds_addresses, is_test=True, failure=toolchain.failure,
            )
        )  # fmt: skip
        return ProgramTrial({toolchain.file: source}, tuple(steps))

    def _command(self, words: tuple[str, ...]) -> tuple[str, ...]:
        names = {**self.paths, "file": self.toolchain.file}
        return tuple(
            re.sub(r"\{([\w+#]+)\}", lambda found: names[found.group(1)], word) for word in words
        )


def _beside(program: Path) -> list[str]:
    """Give what a program outside /usr, or with its settings in /etc, needs to see."""
    mounts = []
    if Path("/usr") not in program.parents:
        # .../NAME/bin/program: the whole of NAME, if that holds no home and is none
        whole, home = program.parent.parent, Path.home()
        is_own = program.parent.name == "bin" and whole != home / ".local"
        is_own = is_own and not home.is_relative_to(whole)
        mounts.append(str(whole if is_own else program))
    settings = (path for name in SETTINGS for path in Path("/etc").glob(name))
    return [*mounts, *map(str, settings)]


def _printed(command: list[str]) -> str:
    """Give what a command prints, nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
