"""What a preflight says: findings with a level, what was seen, what to do, and whom it concerns. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One check and its outcome."""

    level: Level
    check: str
    seen: str
    what_to_do: str = ""
    where: tuple[str, ...] = ()  # hosts or ranks that failed

    def lines(self) -> list[str]:
        """Give it as a line for a terminal, and one more with what to do."""
        where = f" [{', '.join(self.where)}]" if self.where else ""
        line = f"{self.level}  {self.check:<14} {self.seen}{where}"
        return [line] if self.level == "PASS" else [line, f"      {'':<14} {self.what_to_do}"]


def same_everywhere(
    check: str, values: Mapping[str, object], what_to_do: str, level: Level = "FAIL"
) -> Finding:
    """Judge a value that all hosts should share; name those that differ from most."""
    by_value: dict[str, list[str]] = {}
    for host, value in values.items():
        by_value.setdefault(str(value), []).append(host)
    common = max(by_value, key=lambda value: len(by_value[value]))
    if len(by_value) == 1:
        return Finding("PASS", check, f"{common} on all")
    others = {value: hosts for value, hosts in by_value.items() if value != common}
    seen = f"{common} on {len(by_value[common])} of {len(values)}; " + "; ".join(
        f"{value} on {', '.join(hosts)}" for value, hosts in others.items()
    )
    where = tuple(host for hosts in others.values() for host in hosts)
    return Finding(level, check, seen, what_to_do, where)


def to_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Give them for machines."""
    return {"passed": has_passed(findings), "findings": [asdict(item) for item in findings]}


def has_passed(findings: Sequence[Finding]) -> bool:
    return all(item.level != "FAIL" for item in findings)
