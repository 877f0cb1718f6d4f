"""Options from a YAML file (--config), and what they share with flags: their fields, types and names.

Knows nothing of command lines and of torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.megatron_flags import ALIASES, answer_to


def value_type_of(hint: Any) -> Any:
    """Strip `| None` from a type hint."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def options_of(section: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """List (field, type without None) of every field that has a flag."""
    hints = typing.get_type_hints(section)
    return [
        (field, value_type_of(hints[field.name]))
        for field in dataclasses.fields(section)
        if not field.metadata.get("derived")
    ]


def sections() -> dict[str, type]:
    """Name every section of Config and its class."""
    return {field.name: type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Give the known name that a misspelled one resembles, None if none comes close."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def check_text(name: str, text: str) -> None:
    """Raise ConfigError for what no file name can hold, or no configuration can be saved with."""
    try:
        is_text = "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise ConfigError(
            f"{name} is {text[:80]!r}, which is not UTF-8 or has a NUL character in it"
        )


def _coerce(name: str, value: Any, value_type: Any) -> Any:
    """Turn a YAML value into a field's type, or raise ConfigError. YAML reads 3e-4 as a string."""
    shown = reprlib.repr(value)  # what aliases make may be longer than all memory
    origin = typing.get_origin(value_type)
    if origin is Literal:
        allowed = typing.get_args(value_type)
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(f"{name} is {shown}; allowed: {', '.join(map(str, allowed))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_coerce(name, item, typing.get_args(value_type)[0]) for item in items)
    if value_type is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {shown}; allowed: true, false")
        return value
    try:
        if isinstance(value, (list, dict, set)):
            raise TypeError
        if value_type is str:
            check_text(name, str(value))
        if isinstance(value, bool) or (value_type is int and float(value) != int(float(value))):
            raise ValueError
        if value_type is int and isinstance(value, int):
            return value
        return value_type(float(value)) if value_type is int else value_type(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {shown}; expected {value_type.__name__}") from None


def _hint(name: str, known: Iterable[str]) -> str:
    """Say what to write in place of an unknown name."""
    flag = "--" + name.replace("_", "-")
    if flag in ALIASES:
        target, value, _ = ALIASES[flag]
        return f"; write {target}: {str(value).lower()}"
    if (answer := answer_to(flag)) is not None:
        return f"; {answer}"
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def parse_yaml(where: str, text: str) -> Any:
    """Read a YAML text; ConfigError if it is none. Aliases are kept as such: write values out with `reprlib`."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not YAML: {str(error).splitlines()[0]}") from None


def read_defaults(path: Path) -> dict[str, Any]:
    """Read a YAML file of options: field names with - or _, flat or under section names.

    Returns {field name: value}. Raises ConfigError for a missing file, an unknown name or a wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from None
    content = parse_yaml(f"--config {path}", text) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} holds no options; write lines such as 'num-layers: 24'")
    classes = sections()
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= value if key in classes and isinstance(value, dict) else {key: value}
    options = {
        field.name: (field, value_type)
        for section in classes.values()
        for field, value_type in options_of(section)
    }
    result: dict[str, Any] = {}
    for key, value in flat.items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise ConfigError(f"--config {path}: {key} is not an option{_hint(name, options)}")
        if value is None:
            continue
        field, value_type = options[name]
        if field.metadata["parse"]:
            try:
                if isinstance(value, list) and all(type(item) is int for item in value):
                    value = ",".join(map(str, value))
                value = field.metadata["parse"](_coerce(f"--config {path}: {key}", value, str))
            except ConfigError as error:
                raise ConfigError(f"--config {path}: {key}: {error}") from None
        result[name] = _coerce(f"--config {path}: {key}", value, value_type)
    return result
