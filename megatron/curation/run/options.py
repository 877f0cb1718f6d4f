"""What every command of curation is told: where it reads and writes, and how. Knows nothing of stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.option_field import check_bounds, option, require


@dataclass(frozen=True)
class RunOptions:
    """Input and output of a run."""

    input: tuple[str, ...] = option(
        (),
        ".jsonl, .jsonl.gz, .jsonl.zst or .parquet files, or folders of them, such as an --output of before",
        metavar="PATH",
    )
    output: str | None = option(
        None, "folder to write, which appears shard by shard", metavar="DIR"
    )
    workers: int = option(1, "processes; the output does not depend on it", minimum=1)
    format: Literal["jsonl.zst", "jsonl", "jsonl.gz", "parquet"] = option(
        "jsonl.zst", "of the records that are written"
    )
    text_key: str = option("text", "key of the text (The Stack: content)", metavar="KEY")
    id_key: str = option(
        "id",
        "key that names a record (The Stack: hexsha); made from file and place if missing",
        metavar="KEY",
    )
    shard_mb: float = option(64.0, "megabytes of input that one process takes at a time", above=0)
    max_document_mb: float = option(
        10.0, "hard cap: a longer text is dropped unread by every stage", above=0
    )
    strict: bool = option(False, "stop at the first record that cannot be read")
    overwrite: bool = option(False, "replace what another command wrote to --output")
    keep_intermediate: bool = option(
        False, "keep what is written between passes, and the work files of dedup"
    )
    dry_run: bool = option(
        False, "read a sample, write nothing, predict what is dropped, time and disk"
    )
    sample_mb: float = option(20.0, "with --dry-run: megabytes that are read", above=0)
    ray: str | None = option(
        None,
        "do the work by Ray, --workers tasks at a time: auto (the cluster that this machine is part of), HOST:PORT, or "
        "local; all machines must see --input and --output under the same paths",
        metavar="ADDRESS",
    )

    def check(self) -> None:
        """Raise ConfigError for what is missing or out of range."""
        check_bounds(self)
        require(bool(self.input), "no --input; give files of records or folders of them")
        require(self.output is not None or self.dry_run, "no --output; name the folder to write")

    @property
    def folder(self) -> Path:
        """Give the output folder."""
        assert self.output is not None
        return Path(self.output)

    @property
    def max_document_bytes(self) -> int:
        return int(self.max_document_mb * 1e6)

    @property
    def shard_bytes(self) -> int:
        return int(self.shard_mb * 1e6)
