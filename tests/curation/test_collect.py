"""Repositories into records: what a repository is, which licence a file has, what is no text."""

import errno
import inspect
import json
import os
import sys
from pathlib import Path

import pytest

from megatron.curation.collect import CollectConfig, plan_folders, walk
from megatron.curation.run.document import Document
from megatron.curation.run.record_io import BadRecord
from megatron.errors import ConfigError


def lay(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def found(root, repositories="auto"):
    return {
        f"{file.repo}:{file.name}": file.license
        for file in walk(root, repositories)
        if file.name.endswith((".py", ".js", ".c"))
    }


def test_repositories_are_git_folders_and_packages_with_the_licence_they_state(tmp_path):
    lay(
        tmp_path,
        {
            "one/.git/config": '[remote "origin"]\n\turl = git@github.com:Octo/One.git\n',
            "one/LICENSE": "MIT License\n\nPermission is hereby granted",
            "one/a.py": "",
            "one/vendor/x/package.json": json.dumps({"license": "ISC"}),
            "one/vendor/x/lib/b.js": "",
            "two/package.json": json.dumps({"license": "Apache-2.0"}),
            "two/c.js": "",
            "group/three/pyproject.toml": '[project]\nlicense = "BSD-2-Clause"',
            "group/three/d.py": "",
            "loose/e.py": "",
        },
    )
    assert found(tmp_path) == {
        "octo/one:a.py": "MIT",
        "octo/one:vendor/x/lib/b.js": "ISC",
        "two:c.js": "Apache-2.0",
        "group/three:d.py": "BSD-2-Clause",
        "loose:e.py": None,
    }
    assert set(found(tmp_path / "one", "roots")) == {"one:a.py", "one:vendor/x/lib/b.js"}
    assert "group:three/d.py" in found(tmp_path, "children")


def test_debian_copyright_gives_a_licence_to_each_file(tmp_path):
    lay(
        tmp_path / "pkg",
        {
            "debian/copyright": "Format: x\n\nFiles: *\nLicense: Expat\n\nFiles: gpl/*\nLicense: GPL-2+\n",
            "a.c": "",
            "gpl/b.c": "",
        },
    )
    assert found(tmp_path) == {"pkg:a.c": "MIT", "pkg:gpl/b.c": "GPL-2.0-or-later"}


def test_an_unpacked_package_has_the_licences_of_its_source_tree(tmp_path):
    stated = (
        "Format: x\n\nFiles: *\nLicense: Expat\n\nFiles: html/test/*\n share/*\nLicense: GPL-2\n"
    )
    lay(
        tmp_path / "pkg/usr/share",
        {"doc/pkg/copyright": stated, "go/html/a.c": "", "go/html/test/b.c": "", "nohtml/test/c.c": ""},
    )  # fmt: skip
    licences = {
        "pkg:usr/share/go/html/a.c": "MIT",
        "pkg:usr/share/go/html/test/b.c": "GPL-2.0-only",
        "pkg:usr/share/nohtml/test/c.c": "MIT",
    }
    assert found(tmp_path) == licences
    lay(tmp_path / "pkg/usr/share", {"doc/pkg-doc/copyright": stated})
    assert found(tmp_path) == licences
    lay(
        tmp_path / "pkg/usr/share", {"doc/other/copyright": "Format: x\n\nFiles: *\nLicense: ISC\n"}
    )
    assert set(found(tmp_path).values()) == {None}


def test_installed_python_packages_have_the_licence_of_their_dist_info(tmp_path):
    lay(
        tmp_path,
        {
            "a_b/x.py": "",
            "c/y.py": "",
            "A_B-1.0.dist-info/METADATA": "Name: A-B\nLicense-Expression: MIT\n",
            "A_B-1.0.dist-info/RECORD": "a_b/x.py,sha256=1,2\n",
        },
    )
    assert found(tmp_path) == {"a_b:x.py": "MIT", "c:y.py": None}


def test_text_is_read_and_all_else_is_named_with_its_reason(tmp_path):
    lay(
        tmp_path / "r",
        {
            "a.py": "\ufeffx = 1\n",
            "b.bin": b"a\0b",
            "c.c": b"caf\xe9",
            "d.txt": "y" * 3000,
            "é.py": "z",
        },
    )
    (tmp_path / "r/link.py").symlink_to("a.py")
    sources = list(
        plan_folders([tmp_path], CollectConfig(), shard_bytes=1 << 20, max_document_bytes=2000)
    )
    items = [item for source in sources for item in source.read()]
    documents = {item.id: item for item in items if isinstance(item, Document)}
    assert set(documents) == {"r:a.py", "r:é.py"}
    assert documents["r:a.py"].text == "x = 1\n"
    assert documents["r:a.py"].metadata == {"repo": "r", "path": "a.py"}
    bad = {item.place: item.reason for item in items if isinstance(item, BadRecord)}
    assert bad == {"r:b.bin": "binary", "r:c.c": "not UTF-8", "r:d.txt": "above --max-document-mb"}


def test_shards_follow_names_and_sizes_alone(tmp_path):
    lay(tmp_path, {f"r{i}/f{j}.py": "x" * 100 for i in range(5) for j in range(5)})
    plans = [
        list(plan_folders([tmp_path], CollectConfig(), shard_bytes=700, max_document_bytes=10**6))
        for _ in range(2)
    ]
    assert [len(source.files) for source in plans[0]] == [7, 7, 7, 4]
    assert [source.fingerprint() for source in plans[0]] == [
        source.fingerprint() for source in plans[1]
    ]
    (tmp_path / "r0/f0.py").write_text("y" * 101)
    again = list(
        plan_folders([tmp_path], CollectConfig(), shard_bytes=700, max_document_bytes=10**6)
    )
    assert again[0].fingerprint() != plans[0][0].fingerprint()


def collected(*roots):
    plan = plan_folders(roots, CollectConfig(), shard_bytes=10**6, max_document_bytes=10**6)
    items = [item for source in plan for item in source.read()]
    bad = {item.place: item.reason for item in items if isinstance(item, BadRecord)}
    return {item.id: item for item in items if isinstance(item, Document)}, bad


def test_folders_that_cannot_be_read_are_named_and_metadata_that_cannot_states_nothing(
    tmp_path, monkeypatch
):
    lay(tmp_path / "r", {"a.py": "x", "no/b.py": "x", "p-1.dist-info/METADATA": "License: MIT\n"})
    scandir, read_text = os.scandir, Path.read_text

    def refuse(path, *rest, **more):
        if Path(path).name in ("no", "METADATA"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return (read_text if isinstance(path, Path) else scandir)(path, *rest, **more)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    documents, bad = collected(tmp_path)
    assert set(documents) == {"r:a.py", "r:p-1.dist-info/METADATA"}
    assert bad == {"r:no/": "unreadable: Permission denied"}


def test_folders_may_lie_deeper_than_python_calls_and_links_in_circles(tmp_path):
    depth = 300
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "circle").symlink_to("..")
    folders = [folder]
    for _ in range(depth):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "a.py").write_text("x")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        documents, _ = collected(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert set(documents) == {f"r:{'d/' * depth}a.py"}


def test_two_folders_that_claim_one_name_give_ids_of_their_own(tmp_path):
    lay(tmp_path, {"one/lib/a.py": "1", "two/lib/a.py": "2", "two/lib/lib/a.py": "3"})
    documents, _ = collected(tmp_path / "one", tmp_path / "two")
    assert {id: item.text for id, item in documents.items()} == {
        "lib:a.py": "1",
        "lib#2:a.py": "2",
        "lib#2:lib/a.py": "3",
    }
    assert documents["lib#2:a.py"].metadata["repo"] == "lib"


def test_names_that_are_not_utf8_are_spelled_each_in_its_way(tmp_path):
    for name in (b"bad\xff", b"bad\xfe"):
        lay(tmp_path, {os.fsdecode(b"r/" + name + b"/" + name + b".py"): "x"})
    documents, _ = collected(tmp_path)
    assert set(documents) == {f"r:bad\\x{byte}/bad\\x{byte}.py" for byte in ("fe", "ff")}
    documents, _ = collected(tmp_path / "r")
    assert documents["bad\\xff:bad\\xff.py"].metadata["repo"] == "bad\\xff"


def test_unknown_idea_of_a_repository_is_an_error():
    with pytest.raises(
        ConfigError, match="--repositories is 'all'; allowed: auto, roots, children"
    ):
        list(
            plan_folders([], CollectConfig(repositories="all"), shard_bytes=1, max_document_bytes=1)
        )
