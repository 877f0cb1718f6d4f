"""The rules of the house that a machine can check: who imports whom, who reads the environment, what is pinned."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A package may import from the rows above its own and from itself, never from a sibling in its row.
LAYERS = (
    {
        "config",
        "options",
        "option_field",
        "layer_split",
        "presets",
        "megatron_flags",
        "cli",
        "errors",
        "logging",
        "transfer",
        "timeline",
        "checksum",
        "metrics_file",
        "whole_file",
        "progress",
    },
    {"kernels", "tokenizer"},
    {"parallel", "data", "launching"},
    {"model"},
    {"checkpoint", "optimizer"},
    {"training", "inference", "evaluation", "convert", "planning"},
    {"benchmark", "preflight", "serving"},
)
BOTTOM = LAYERS[0]
# These two see less than their row would allow.
NARROW = {
    "curation": BOTTOM | {"tokenizer", "data"},
    "attribution": BOTTOM | {"tokenizer", "data"},
}
# The folders of curation, in rows too. What puts them together stands above them: collect, mix, stages, pipeline.
CURATION_LAYERS = (
    {"run"},
    {"select"},
    {"filters", "dedup", "decontaminate", "pii", "formats"},
)
CATCHES_EXCEPTION = {
    "megatron/tokenizer/json_tokenizer.py",  # tokenizers raises nothing narrower
    "megatron/evaluation/isolation/guest.py",  # whatever a generated program raises
    "megatron/evaluation/isolation/context.py",  # the same
    "megatron/evaluation/isolation/wire.py",  # the same, by the text of its exceptions
    "megatron/evaluation/isolation/judge.py",  # whatever a test raises
    "megatron/evaluation/isolation/sandbox.py",  # cleans up and raises it again
}
ENDS_PROCESS = {
    "megatron/cli.py",
    "megatron/evaluation/isolation/side.py",
    "megatron/evaluation/isolation/program.py",
}  # exit codes and the way out of a hang; forks that are not to return
READS_ENVIRONMENT = {"megatron/parallel/launch.py"}  # the launcher's topology

MEGATRON = sorted((ROOT / "megatron").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
SCRIPTS = sorted([*ROOT.glob("examples/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci/run"])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(module: str) -> str:
    """`megatron.data.fim` -> `data`."""
    return module.split(".")[1]


def allowed(package: str) -> set[str]:
    """The packages of megatron/ that a package may import."""
    if package in NARROW:
        return NARROW[package] | {package}
    row = next(number for number, names in enumerate(LAYERS) if package in names)
    siblings = BOTTOM if row == 0 else {package}  # the bottom row is one layer
    if package in ("benchmark", "serving"):
        siblings = {package, *NARROW}  # one measures everything, the other shows it
    return set().union(*LAYERS[:row], siblings)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            assert node.module is not None
            for alias in node.names:
                assert alias.name != "*", f"{path}:{node.lineno} imports a star"
                yield node.lineno, f"{node.module}.{alias.name}"


def environment_reads(source: str) -> list[int]:
    """Lines that touch os.environ or os.getenv under any spelling of os."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in ("environ", "getenv") for alias in node.names)
        )
    ]


@pytest.mark.parametrize("path", MEGATRON, ids=relative)
def test_packages_import_only_from_layers_below(path: Path) -> None:
    parts = path.relative_to(ROOT / "megatron").with_suffix("").parts
    if parts == ("__init__",):
        assert not [name for _, name in imports(path) if name.startswith("megatron")]
        return
    for line, name in imports(path):
        if name.split(".")[0] in ("tools", "tests", "examples"):
            pytest.fail(f"{relative(path)}:{line} imports {name}, which stands above the library")
        if name.startswith("megatron."):
            assert package_of(name) in allowed(parts[0]), (
                f"{relative(path)}:{line} imports {name}; {parts[0]} may import from "
                f"{', '.join(sorted(allowed(parts[0])))}"
            )


@pytest.mark.parametrize("path", sorted((ROOT / "megatron/curation").glob("*/*.py")), ids=relative)
def test_folders_of_curation_import_only_from_those_below(path: Path) -> None:
    folder = path.parent.name
    row = next(number for number, names in enumerate(CURATION_LAYERS) if folder in names)
    below = set().union(*CURATION_LAYERS[:row], {folder})
    for line, name in imports(path):
        if name.startswith("megatron.curation."):
            imported = name.split(".")[2]
            assert imported in below or imported.startswith("_"), (  # _: compiled
                f"{relative(path)}:{line} imports {name}; {folder} may import from {sorted(below)}"
            )


def backward_passes(path: Path) -> Iterator[ast.FunctionDef]:
    """Yield the backward of every torch.autograd.Function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and "torch.autograd.Function" in map(
            ast.unparse, node.bases
        ):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "backward":
                    yield item


def test_no_backward_of_ours_can_be_differentiated_without_an_error() -> None:
    # Most write over what they saved or communicate where autograd does not look: a second derivative would be wrong.
    found = [(path, one) for path in MEGATRON for one in backward_passes(path)]
    assert found
    for path, one in found:
        assert "once_differentiable" in map(ast.unparse, one.decorator_list), (
            f"{relative(path)}:{one.lineno} wants @once_differentiable below @staticmethod"
        )


def test_who_reads_token_files_knows_nothing_of_the_text_they_are_made_of() -> None:
    may = ("data/preprocessing", "curation", "benchmark")
    for path in MEGATRON:
        if relative(path).removeprefix("megatron/").startswith(may):
            continue
        for line, name in imports(path):
            assert not name.startswith("megatron.data.preprocessing"), (
                f"{relative(path)}:{line} imports {name}; only {', '.join(may)} turn text into token files"
            )


def test_every_package_has_a_layer() -> None:
    present = {
        path.stem
        for path in (ROOT / "megatron").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert present - {"__init__"} <= set().union(*LAYERS) | set(NARROW)


def test_layers_forbid_what_they_should() -> None:
    assert "model" not in allowed("parallel")
    assert "data" not in allowed("parallel")
    assert "tokenizer" in allowed("data")
    assert "training" not in allowed("convert")
    assert "parallel" not in allowed("curation")


@pytest.mark.parametrize("path", TOOLS, ids=relative)
def test_tools_import_the_library_and_not_each_other(path: Path) -> None:
    others = {tool.stem for tool in TOOLS}
    for line, name in imports(path):
        assert name.split(".")[0] not in {"tools", "tests", *others}, (
            f"{relative(path)}:{line} imports {name}; move what two tools share into megatron/"
        )


def passed_on(path: Path) -> set[str]:
    """The names that a module only imports: whoever wants them goes to where they are defined."""
    imported, defined = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return imported - defined


def test_names_are_imported_from_where_they_are_defined() -> None:
    by_module = {
        relative(path).removesuffix(".py").replace("/", "."): passed_on(path)
        for path in MEGATRON
        if path.name != "__init__.py"
    }
    for path in MEGATRON + TOOLS:
        for line, name in imports(path):
            module, _, last = name.rpartition(".")
            assert last not in by_module.get(module, ()), (
                f"{relative(path)}:{line} takes {last} from {module}, which only imports it"
            )


@pytest.mark.parametrize("path", MEGATRON, ids=relative)
def test_library_reads_no_environment(path: Path) -> None:
    if relative(path) not in READS_ENVIRONMENT:
        assert environment_reads(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["import os\nos.environ['A']", "import os as o\no.getenv('A')", "from os import environ"],
)
def test_environment_reads_are_seen_under_any_spelling(source: str) -> None:
    assert environment_reads(source)


@pytest.mark.parametrize("path", MEGATRON, ids=relative)
def test_library_neither_swallows_errors_nor_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            is_broad = bool(re.search(r"everything|\b(Base)?Exception\b", caught))
            assert not is_broad or relative(path) in CATCHES_EXCEPTION, (
                f"{relative(path)}:{node.lineno} catches {caught}; name the errors it can handle"
            )
        if isinstance(node, ast.Call) and relative(path) not in ENDS_PROCESS:
            called = ast.unparse(node.func)
            assert called not in ("exit", "quit", "sys.exit", "os._exit"), (
                f"{relative(path)}:{node.lineno} calls {called}; raise an error of megatron.errors"
            )


@pytest.mark.parametrize("path", MEGATRON + TOOLS, ids=relative)
def test_modules_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_pinned(name: str) -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*(;.*)?", line), line


def test_install_requirements_are_among_the_pinned() -> None:
    setup = (ROOT / "setup.py").read_text()
    block = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)
    assert block is not None
    needed = set(re.findall(r'"([A-Za-z0-9_-]+)', block.group(1))) - {"torch"}
    pinned = set(re.findall(r"^([A-Za-z0-9_-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    assert needed and needed <= pinned


def test_every_c_plus_plus_source_is_built() -> None:
    setup = (ROOT / "setup.py").read_text()
    for source in (ROOT / "csrc").glob("*.cpp"):
        assert f'"csrc/{source.name}"' in setup


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_shell_scripts_parse_and_stop_at_errors(path: Path) -> None:
    result = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "set -euo pipefail" in path.read_text()


def test_shell_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.executable).parent
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
