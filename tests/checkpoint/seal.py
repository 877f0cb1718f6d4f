"""Checkpoints changed or made up by hand, as if they had been written so."""

import json
from pathlib import Path

from megatron.checkpoint.checksums import SUMS_FILE, encode_sums
from megatron.checkpoint.layout import METADATA_FILE
from megatron.checksum import hash_file


def seal(folder: Path) -> None:
    """Make the lengths in metadata.json and the hashes in SHA256SUMS fit the files in a folder."""
    path = folder / METADATA_FILE
    metadata = json.loads(path.read_text()) if path.is_file() else {"format_version": 2}
    files = {file.name: file for file in folder.iterdir() if file.name != SUMS_FILE}
    files.pop(METADATA_FILE, None)
    metadata["files"] = {name: file.stat().st_size for name, file in files.items()}
    path.write_text(json.dumps(metadata))
    sums = {name: hash_file(file) for name, file in (files | {METADATA_FILE: path}).items()}
    (folder / SUMS_FILE).write_bytes(encode_sums(sums))
