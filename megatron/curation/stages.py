"""Every stage by its name: its options, what it does, and how it is made. A new stage is one line here.

`pii`, `decontaminate`, `format`, … take part in `curate.py NAME` and in pipelines as soon as they stand in STAGES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.curation.decontaminate.stage import DecontaminateConfig, decontaminate_stage
from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.filters.stage import FilterConfig, filter_stage
from megatron.curation.formats.stage import FormatConfig, format_stage
from megatron.curation.pii.stage import PiiConfig, pii_stage
from megatron.curation.run.passes import Step
from megatron.curation.select.stage import SelectConfig, select_stage


@dataclass(frozen=True)
class StageKind:
    """How a stage is made from its options, a frozen dataclass of `option` fields with a method `check`."""

    help: str
    config: type[Any]
    make: Callable[[Any], Step]


STAGES: dict[str, StageKind] = {
    "select": StageKind(
        "languages, licences, opt-outs: which files may be used", SelectConfig, select_stage
    ),
    "filter": StageKind(
        "drop files by their shape: long lines, few letters, XML, data", FilterConfig, filter_stage
    ),
    "dedup": StageKind(
        "drop exact and near duplicates, the best of each kept", DedupConfig, dedup_comparison
    ),
    "decontaminate": StageKind(
        "drop or flag what holds a benchmark", DecontaminateConfig, decontaminate_stage
    ),
    "pii": StageKind(
        "replace e-mail, IP addresses, keys, passwords and names", PiiConfig, pii_stage
    ),
    "format": StageKind(
        "code, issues, commits and notebooks as text with sentinels", FormatConfig, format_stage
    ),
}
