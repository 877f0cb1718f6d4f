"""Several stages from a YAML file: options under their names, stages in their order. Command-line flags override.

    input: [raw/*.jsonl.zst]
    output: curated
    workers: 8
    stages:
      - select: {languages: [python, go], opt-out: [optout.txt]}
      - filter
      - dedup: {threshold: 0.7}

Knows nothing of what a stage does.
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path
from typing import Any

from megatron.cli import add_section, make_parser, section_from
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Step
from megatron.curation.stages import STAGES
from megatron.errors import ConfigError


def read_pipeline(path: Path, args: argparse.Namespace) -> tuple[RunOptions, list[Step]]:
    """Read a pipeline; args: flags of the command line, which win. Raises ConfigError for what it cannot mean."""
    content = _load(path)
    stages = content.pop("stages", None)
    if not isinstance(stages, list) or not stages:
        raise ConfigError(
            f"{path} has no stages; write a list, as 'stages: [select, filter, dedup]'"
        )
    inputs = content.get("input", [])
    patterns = [str(item) for item in (inputs if isinstance(inputs, list) else [inputs])]
    if patterns:
        content["input"] = [name for pattern in patterns for name in _expand(path, pattern)]
    stated = _parse(path, "the file", RunOptions, content)
    options = section_from(args, RunOptions, vars(stated))
    steps = [_step(path, entry) for entry in stages]
    names = [step.name for step in steps]
    if "format" in names and (after := {"pii", "format"} & {*names[names.index("format") + 1 :]}):
        raise ConfigError(
            f"{path}: {min(after)} stands behind format and would change text whose sentinels are counted out; put "
            "format behind it"
        )
    return options, steps


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no options; it needs input, output and stages")
    return {str(key): value for key, value in content.items()}


def _expand(path: Path, pattern: str) -> list[str]:
    """Give the files that a pattern names, as a shell would; a name without wildcards stays."""
    if not glob.has_magic(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - a Path takes no absolute pattern
    if not found:
        raise ConfigError(f"{path}: no file is named {pattern}")
    return found


def _step(path: Path, entry: Any) -> Step:
    """Make the step of one entry: a name, or a name with options."""
    name, given = (
        next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
    )
    if not isinstance(name, str) or name not in STAGES:
        raise ConfigError(f"{path}: {name!r} is no stage; known are {', '.join(STAGES)}")
    if given is not None and not isinstance(given, dict):
        raise ConfigError(
            f"{path}: {name} has {given!r}; write its options, as '{name}: {{option: value}}'"
        )
    kind = STAGES[name]
    return kind.make(_parse(path, name, kind.config, given or {}))


def _parse(path: Path, what: str, section: type[Any], given: dict[str, Any]) -> Any:
    """Read options as the command line would: one way to spell and to check them."""
    parser = make_parser("", "")
    add_section(parser, section)
    words: list[str] = []
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        if value is None or value is False:
            continue
        words.append(flag)
        if value is not True:
            words += [str(item) for item in (value if isinstance(value, list) else [value])]
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown:
            raise ConfigError(f"{unknown[0].removeprefix('--')} is not an option")
    except ConfigError as error:
        raise ConfigError(f"{path}: {what}: {error}") from None
    return section_from(args, section)
