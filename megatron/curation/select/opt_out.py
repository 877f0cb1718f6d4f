"""Opt-out lists: owners and repositories whose files are left out. Names are compared without case, as GitHub's are.

A list is text, a name a line, `owner` or `owner/repository`, `#` for remarks; or JSON lines, `{"owner": …}` or
`{"repo": …}`, as training's --exclude-documents reads the latter. Knows nothing of documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from megatron.errors import DataError

_NAME = re.compile(r"[^\s/]+(?:/[^\s/]+)*")
_URL = re.compile(r"^(?:[a-z+]+://(?:[^/@]*@)?|[\w.-]+@)[^/:]+[/:]")


@dataclass(frozen=True)
class OptOut:
    """The names of all lists, each with the list it stands in."""

    names: dict[str, str]
    fingerprint: str

    def find(self, repository: str) -> tuple[str, str] | None:
        """Give (name, list) if a repository or its owner is listed."""
        name = repository_name(repository)
        owner = name.partition("/")[0]
        for candidate in (name, owner):
            if candidate and candidate in self.names:
                return candidate, self.names[candidate]
        return None


def repository_name(repository: str) -> str:
    """Give `owner/repository` in lower case of a name or a URL, without `.git`."""
    return _URL.sub("", repository.strip().lower()).strip("/").removesuffix(".git")


def read_opt_out(paths: Sequence[Path]) -> OptOut:
    """Read the lists. Raises DataError with the line of what is no name."""
    names: dict[str, str] = {}
    digest = hashlib.sha256()
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"--opt-out {path} cannot be read: {error.strerror}") from None
        digest.update(data)
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            name = _name_of(line)
            if name is None:
                raise DataError(
                    f"--opt-out {path}:{number} is no name: {line[:80]!r}; write owner, owner/repository or "
                    '{"repo": "owner/repository"}'
                )
            if name:
                names.setdefault(repository_name(name), path.name)
    return OptOut(names, digest.hexdigest())


def _name_of(line: str) -> str | None:
    """Give the name of a line, "" of one that says nothing, None of one that cannot be read."""
    line = line.strip().lstrip("\ufeff")
    if not line or line.startswith("#"):
        return ""
    if line.startswith("{"):
        try:
            content = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        value = content.get("repo") or content.get("owner")
        return value if isinstance(value, str) and set(content) <= {"repo", "owner"} else None
    name = line.partition("#")[0].strip()
    return name if _NAME.fullmatch(repository_name(name)) else None
