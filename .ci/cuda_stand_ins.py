"""Let a CUDA build of torch run on a machine without a GPU and without CUDA's libraries, for tests on the CPU.

python .ci/cuda_stand_ins.py .venv-oldest-torch/lib/python3.11/site-packages/torch/lib

Package indexes have old releases of torch as CUDA builds alone, and these do not load without several GB of libraries.
Each library that is missing gets a small one in its place, with the functions that torch asks it for; all of them fail,
as there is no device. Needs a C compiler and binutils.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

OF_CUDA = re.compile(r"lib(cu|nv|nccl)")
GIVES_TEXT = re.compile(r"(Error|Result)(String|Name)$|^ncclGetLastError$")
NO_DEVICE = 100  # cudaErrorNoDevice; to the other libraries any number but 0 is a failure


def read_elf(library: Path, *what: str) -> str:
    """Give what readelf says of a library."""
    command = ["readelf", "--wide", *what, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def owners_of_versions(library: Path) -> dict[str, str]:
    """Tell of each version of symbols that a library needs in which other library it is."""
    owners, owner = {}, ""
    for file, version in re.findall(
        r"File: (\S+)|Name: (\S+)", read_elf(library, "--version-info")
    ):
        owner = file or owner
        if version:
            owners[version] = owner
    return owners


def missing_functions(folder: Path) -> dict[str, dict[str, set[str]]]:
    """Find what torch's libraries need and do not have: functions by library of CUDA and by version ("" for none)."""
    libraries = [path for path in folder.glob("*.so*") if path.is_file()]
    names = {path.name for path in libraries}
    needed: set[str] = set()
    owners: dict[str, str] = {}
    undefined: set[str] = set()
    defined: set[str] = set()
    for library in libraries:
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", read_elf(library, "--dynamic")))
        owners |= owners_of_versions(library)
        for line in read_elf(library, "--dyn-syms").splitlines():
            columns = line.split()
            if len(columns) < 8 or columns[4] != "GLOBAL":  # weak ones may stay undefined
                continue
            (undefined if columns[6] == "UND" else defined).add(columns[7])
    missing: dict[str, dict[str, set[str]]] = {
        name: defaultdict(set) for name in sorted(needed - names) if OF_CUDA.match(name)
    }
    for symbol in undefined - defined:
        function, _, version = symbol.partition("@")
        # Those without a version may be anywhere; those of the C and C++ libraries have one.
        owner = owners.get(version) if version else next(iter(missing), None)
        if owner in missing:
            missing[owner][version].add(function)
    return missing


def source_of(function: str) -> str:
    """Give a function in C that fails, or, where a text is asked for, gives one."""
    if GIVES_TEXT.search(function):
        return f'const char *{function}(void) {{ return "no CUDA here"; }}'
    return f"int {function}(void) {{ return {NO_DEVICE}; }}"


def build(library: Path, functions: dict[str, set[str]]) -> None:
    """Compile a library of functions, by their version."""
    source = "\n".join(source_of(one) for group in functions.values() for one in sorted(group))
    versions = "\n".join(
        f"{version} {{ {' '.join(f'{one};' for one in sorted(group))} }};"
        for version, group in functions.items()
        if version
    )
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-x", "c", "-"]
    script = library.with_suffix(".versions")
    if versions:
        script.write_text(versions)
        command.append(f"-Wl,--version-script={script}")
    subprocess.run([*command, "-o", str(library)], input=source, text=True, check=True)
    script.unlink(missing_ok=True)


def main() -> None:
    """Build what is missing in the folder of torch's libraries."""
    folder = Path(sys.argv[1])
    for name, functions in missing_functions(folder).items():
        build(folder / name, functions)


if __name__ == "__main__":
    main()
