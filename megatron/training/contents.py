"""What the files of a run hold, its tokenizer's and its data's: kept with a checkpoint, and compared. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.data.content import (
    SHOWN,
    SetContents,
    difference_of_sets,
    sets_from_json,
    sets_to_json,
)

CONTENTS = ("tokenizer", "train_data", "eval_data")
BY_CHECKSUM = "by its .sha256"


@dataclass(frozen=True)
class Contents:
    """What the files of a run hold."""

    tokenizer: str  # SHA-256 of what decides its ids
    train_data: SetContents
    eval_data: SetContents

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "tokenizer": self.tokenizer,
            "train_data": sets_to_json(self.train_data),
            "eval_data": sets_to_json(self.eval_data),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Contents:
        """Read what `to_json` gave. Raises ValueError for anything else."""
        if not isinstance(values.get("tokenizer"), str):
            raise ValueError("it names no tokenizer")
        sets = (sets_from_json(values.get(name)) for name in CONTENTS[1:])
        return cls(values["tokenizer"], *sets)

    def difference(self, other: Contents) -> str | None:
        """Say how the other differs, to be read after "the checkpoint …"; None if it does not."""
        if self.tokenizer != other.tokenizer:
            one, two = self.tokenizer[:SHOWN], other.tokenizer[:SHOWN]
            return f"has tokenizer = SHA-256 {one}…, this run {two}…"
        for name in CONTENTS[1:]:
            found = difference_of_sets(getattr(self, name), getattr(other, name))
            if found is not None:
                return f"has {name}: {found}"
        return None


def list_files(contents: Contents, opt_outs: Sequence[str]) -> dict[str, str]:
    """Say what each file of a run holds, for processes to compare; checksums stand apart, for a node may lack them."""
    files = {"the tokenizer": f"SHA-256 {contents.tokenizer[:SHOWN]}…"}
    for kind, sets in (("training", contents.train_data), ("evaluation", contents.eval_data)):
        for name, sources in sets.items():
            for number, source in enumerate(sources, 1):
                which = f"source {number} of the {kind} set {name}, {source.file},"
                part = f"documents {source.start} to {source.stop} of content"
                files[which] = f"{part} {source.content.sample[:SHOWN]}…"
                if source.content.sha256 is not None:
                    files[f"{which} {BY_CHECKSUM}"] = f"{source.content.sha256[:SHOWN]}…"
    for number, digest in enumerate(opt_outs, 1):
        files[f"list {number} of --exclude-documents"] = f"SHA-256 {digest[:SHOWN]}…"
    return files
