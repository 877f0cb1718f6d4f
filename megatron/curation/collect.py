"""From folders of repositories or packages to records: text, path, repo, license. The start of curation.

A repository is a folder with `.git`, else the outermost folder below the root that holds package metadata, else the root's
subfolder. The licence of a file is that of debian/copyright if it names the file, else that of the nearest folder above
it that states one. Links are not followed. Which files are wanted is not decided here (see select/).
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from megatron.curation.run.document import Document
from megatron.curation.run.record_io import BadRecord
from megatron.curation.select.licence_files import (
    MAX_BYTES,
    Dep5,
    is_metadata,
    licence_of,
    parse_dep5,
)
from megatron.curation.select.opt_out import repository_name
from megatron.errors import DataError
from megatron.option_field import option, require

SKIPPED_FOLDERS = {".git", ".hg", ".svn", "__pycache__", ".venv", ".tox", ".mypy_cache"}
_PACKAGE_FILES = """package.json pyproject.toml setup.py setup.cfg Cargo.toml go.mod PKG-INFO DESCRIPTION composer.json
pom.xml build.gradle"""
PACKAGE_FILES = frozenset(_PACKAGE_FILES.split())
BINARY_LOOK = 8192  # bytes in which a NUL makes a file binary, as git has it
_GIT_URL = re.compile(r"^\s*url\s*=\s*(\S+)", re.M)


@dataclass(frozen=True)
class CollectConfig:
    """How folders are read."""

    revision_dates: bool = option(
        False, "record each file's time of change as `date`, which breaks ties between duplicates"
    )
    repositories: str = option(
        "auto",
        "what is a repository: auto (a folder with .git or package metadata), roots, or children (of a root)",
    )

    def check(self) -> None:
        """Raise ConfigError for an unknown way."""
        require(
            self.repositories in ("auto", "roots", "children"),
            f"--repositories is {self.repositories!r}; allowed: auto, roots, children",
        )


@dataclass(frozen=True)
class Found:
    """One file, and what its folders say of it."""

    path: str  # on this machine
    size: int
    mtime_ns: int
    repo: str
    name: str  # of the file within its repository
    license: str | None
    base: str = ""  # folder of the repository
    copy: int = 1  # of the repository: a second folder that claims its name has number 2
    error: str = ""  # of a folder that cannot be read


@dataclass(frozen=True)
class _Folder:
    """What is known at a folder and handed down to those inside it."""

    repo: str
    base: str  # the repository's own folder
    is_repository: bool
    license: str | None
    dep5: Dep5 | None


@dataclass(frozen=True)
class FilesSource:
    """A shard: some files of the walk."""

    files: tuple[Found, ...]
    max_bytes: int
    has_dates: bool

    @cached_property
    def _starts(self) -> list[int]:
        """Where each file begins if all that are read lie behind each other, and where they end."""
        sizes = (file.size if file.size <= self.max_bytes else 0 for file in self.files)
        return [*accumulate(sizes, initial=0)]

    @property
    def num_bytes(self) -> int:
        return self._starts[-1]

    @property
    def is_seekable(self) -> bool:
        return True

    def between(self, start: int, stop: int) -> FilesSource:
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, stop)
        # Files without bytes may begin where all end.
        last = len(self.files) if stop == self.num_bytes else last
        return replace(self, files=self.files[first:last])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.has_dates} {self.max_bytes}".encode())
        for file in self.files:
            digest.update(repr(file).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def read(self) -> Iterator[Document | BadRecord]:
        """Give the files that are text; others are bad records, with the reason."""
        for file in self.files:
            copy = f"#{file.copy}" if file.copy > 1 else ""
            id = f"{_spelled(file.repo)}{copy}:{_spelled(file.name)}"
            if file.error:
                yield BadRecord(id, f"unreadable: {file.error}", "")
                continue
            if file.size > self.max_bytes:
                yield BadRecord(id, "above --max-document-mb", "")
                continue
            try:
                with Path(file.path).open("rb") as opened:
                    data = opened.read(BINARY_LOOK)
                    is_binary = b"\0" in data
                    data += b"" if is_binary else opened.read()
            except OSError as error:
                yield BadRecord(id, f"unreadable: {error.strerror}", "")
                continue
            if is_binary:
                yield BadRecord(id, "binary", "")
                continue
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield BadRecord(id, "not UTF-8", "")
                continue
            yield Document(id, text, self._metadata(file))

    def _metadata(self, file: Found) -> dict[str, object]:
        metadata: dict[str, object] = {"repo": _spelled(file.repo), "path": _spelled(file.name)}
        if file.license:
            metadata["license"] = file.license
        if self.has_dates:
            metadata["date"] = file.mtime_ns // 1_000_000_000
        return metadata


def plan_folders(
    roots: Sequence[Path], config: CollectConfig, *, shard_bytes: int, max_document_bytes: int
) -> Iterator[FilesSource]:
    """Walk the roots and give shards of about so many bytes, in an order that depends on names alone.

    A file above the cap is given, to be counted, and never read.
    """
    config.check()
    pending: list[Found] = []
    size = 0
    bases: dict[str, dict[str, int]] = {}  # of each repository, the folders that claim its name
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"{root} is not a folder; collect reads folders of repositories or packages"
            )
        for file in walk(root, config.repositories):
            if pending and size + file.size > shard_bytes:
                yield FilesSource(tuple(pending), max_document_bytes, config.revision_dates)
                pending, size = [], 0
            copies = bases.setdefault(file.repo, {})
            pending.append(replace(file, copy=copies.setdefault(file.base, len(copies) + 1)))
            size += min(file.size, max_document_bytes)
    if pending:
        yield FilesSource(tuple(pending), max_document_bytes, config.revision_dates)


def walk(root: Path, repositories: str = "auto") -> Iterator[Found]:
    """Give every regular file below a root, sorted by name, with its repository and licence.

    A folder that cannot be read is given as a file with an error.
    """
    root = root.resolve()
    start = _Folder(root.name, str(root), repositories == "roots", None, None)
    # What is left to do of each folder that was entered, the innermost last: as deep as folders lie, not as Python calls.
    stack = [_walk(str(root), start, repositories, is_root=True)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif isinstance(found, Found):
            yield found
        else:
            stack.append(_walk(*found, repositories, is_root=False))


def _walk(
    folder: str, above: _Folder, repositories: str, *, is_root: bool
) -> Iterator[Found | tuple[str, _Folder]]:
    """Give the files of one folder, and each folder inside it with what is known above it, to be walked then."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        name = os.path.relpath(folder, above.base).replace(os.sep, "/") + "/"
        yield Found(folder, 0, 0, above.repo, name, None, above.base, error=str(error.strerror))
        return
    here = _describe(folder, entries, above, repositories, is_root=is_root)
    installed = _installed(entries)
    for entry in entries:
        if entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in SKIPPED_FOLDERS:
                below = here
                if is_root and repositories == "children":
                    below = _Folder(entry.name, entry.path, True, here.license, here.dep5)
                elif is_root and not here.is_repository:
                    below = _Folder(entry.name, entry.path, False, here.license, here.dep5)
                if entry.name in installed:
                    below = replace(below, license=installed[entry.name])
                yield entry.path, below
        elif entry.is_file():
            yield _found(entry, here)


def _found(entry: os.DirEntry[str], here: _Folder) -> Found:
    name = os.path.relpath(entry.path, here.base).replace(os.sep, "/")
    try:
        status = entry.stat()
    except OSError as error:  # it was removed meanwhile
        return Found(entry.path, 0, 0, here.repo, name, None, here.base, error=str(error.strerror))
    licence = (here.dep5.licence_of(name) if here.dep5 else None) or here.license
    return Found(
        entry.path, status.st_size, status.st_mtime_ns, here.repo, name, licence, here.base
    )


def _spelled(name: str) -> str:
    """Give a name of this machine as text: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _describe(
    folder: str,
    entries: list[os.DirEntry[str]],
    above: _Folder,
    repositories: str,
    *,
    is_root: bool,
) -> _Folder:
    """Say what holds in a folder: a repository may begin here, a licence be stated, a debian/copyright lie in it."""
    names = {entry.name for entry in entries}
    stated = {
        entry.name: content
        for entry in entries
        if is_metadata(entry.name) and (content := _text_of(Path(entry.path))) is not None
    }
    dep5 = _dep5(folder) if "debian" in names or "usr" in names else None
    found = licence_of(stated)
    licence = found[0] if found else above.license
    begins = repositories == "auto" and (
        ".git" in names or (not above.is_repository and bool(names & PACKAGE_FILES or dep5))
    )
    if not begins:
        return _Folder(above.repo, above.base, above.is_repository, licence, dep5 or above.dep5)
    relative = os.path.relpath(folder, above.base)
    name = above.repo if is_root or relative == "." else f"{above.repo}/{relative}"
    remote = _remote(folder) if ".git" in names else None
    return _Folder((remote or name).replace(os.sep, "/"), folder, True, licence, dep5)


def _installed(entries: list[os.DirEntry[str]]) -> dict[str, str]:
    """Give the licence of each Python package that lies beside its NAME.dist-info, by the folder it is in."""
    found: dict[str, str] = {}
    for entry in entries:
        if not entry.name.endswith((".dist-info", ".egg-info")) or not entry.is_dir():
            continue
        stated = licence_of(_contents(entry.path, ("METADATA", "PKG-INFO")))
        if stated is None:
            continue
        lists = _contents(entry.path, ("top_level.txt", "RECORD"))
        lines = [line for text in lists.values() for line in text.splitlines()]
        for top in {re.split(r"[/,]", line)[0] for line in lines}:
            found.setdefault(top, stated[0])
    return found


def _contents(folder: str, names: tuple[str, ...]) -> dict[str, str]:
    """Give the small text files of these names that a folder holds."""
    texts = ((name, _text_of(Path(folder, name), 8 * MAX_BYTES)) for name in names)
    return {name: text for name, text in texts if text is not None}


def _text_of(path: Path, most: int = MAX_BYTES) -> str | None:
    """Give the text of a file that may state something; None if there is none, it is too large or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _dep5(folder: str) -> Dep5 | None:
    """Read the debian/copyright of a source tree, or that of an unpacked package: usr/share/doc/NAME/copyright.

    Of several packages in one folder nobody can tell which file is of which, unless all say the same.
    """
    unpacked = {
        text
        for path in Path(folder, "usr", "share", "doc").glob("*/copyright")
        if (text := _text_of(path)) is not None
    }
    source = _text_of(Path(folder, "debian", "copyright"))
    found = parse_dep5(source) if source else None
    if found is None and len(unpacked) == 1:
        found = parse_dep5(unpacked.pop(), is_unpacked=True)
    return found


def _remote(folder: str) -> str | None:
    """Give owner/repository of the first remote of a git checkout."""
    match = _GIT_URL.search(_text_of(Path(folder, ".git", "config")) or "")
    name = repository_name(match[1]) if match else ""
    return name or None
