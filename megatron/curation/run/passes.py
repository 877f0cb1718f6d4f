"""A whole run: stages grouped into passes over the data, the output folder, and its files that say what was done.

Stages over single documents share a pass; a stage that compares documents (dedup) begins a new one, which reads what
the pass before wrote. Knows nothing of command lines.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.curation.run.document import Stage
from megatron.curation.run.options import RunOptions
from megatron.curation.run.output_folder import (
    claim,
    disk_errors,
    fingerprint_of,
    locked,
    read_counts,
    write_json,
)
from megatron.curation.run.pool import MakePool, pool_of
from megatron.curation.run.record_io import Source, plan_sources
from megatron.curation.run.shard_pass import (
    PassLayout,
    StagesOf,
    read_stage,
    run_pass,
    same_for_all,
)
from megatron.curation.run.totals import Totals
from megatron.data.shards import natural_key
from megatron.errors import DataError
from megatron.logging import get_logger

logger = get_logger(__name__)

OnBytes = Callable[[int], object]
# Shows the progress of a step: its name and the bytes it will read; gives what is told of bytes as they are done.
Progress = Callable[[str, int], AbstractContextManager[OnBytes]]


def no_progress(name: str, total: int) -> AbstractContextManager[OnBytes]:
    """Show nothing."""
    return nullcontext(lambda size: None)


@dataclass(frozen=True)
class Corpus:
    """What a comparing stage reads, where it may write, and with what."""

    sources: Sequence[Source]
    work: Path
    pool: MakePool
    max_document_bytes: int
    progress: Progress


@dataclass(frozen=True)
class Comparison:
    """A stage that compares documents with each other. `decide` reads all of them and gives each shard its stage."""

    name: str
    decide: Callable[[Corpus], Callable[[int], Stage]]
    settings: Mapping[str, Any]
    # Does the work of some texts, to be timed; gives the part of them that it drops, if that can be told.
    rehearse: Callable[[Sequence[str]], float | None]
    finish: Callable[[Corpus], None] = lambda corpus: None  # when the output is written
    # Held from the decision to the end, as what several runs share must be.
    guard: Callable[[], AbstractContextManager[object]] = nullcontext


Step = Stage | Comparison


@dataclass(frozen=True)
class _Pass:
    comparison: Comparison | None
    stages: tuple[Stage, ...]


def group(steps: Sequence[Step]) -> list[_Pass]:
    """Put steps into passes: a comparison begins one, single-document stages join the pass before them."""
    passes: list[_Pass] = []
    for step in steps:
        if isinstance(step, Comparison):
            passes.append(_Pass(step, ()))
        elif passes:
            passes[-1] = _Pass(passes[-1].comparison, (*passes[-1].stages, step))
        else:
            passes.append(_Pass(None, (step,)))
    return passes or [_Pass(None, ())]


def run_steps(
    steps: Sequence[Step],
    options: RunOptions,
    *,
    sources: Sequence[Source] | None = None,
    command: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Totals:
    """Run all steps into the output folder and give what became of every document. Forks.

    sources: read instead of the input's files. A run that was interrupted is continued; one that is complete is only
    summed up. Raises DataError if the folder holds something else, or the disk is full.
    """
    first: Sequence[Source] = plan(options) if sources is None else sources
    if not first:
        raise DataError(f"nothing to read in {', '.join(options.input)}")
    output = options.folder
    with disk_errors(output), locked(output):
        fingerprint = fingerprint_of(steps, first, options)
        totals = read_counts(output / "totals.json", fingerprint, Totals.from_json)
        if totals is None:
            # may refuse, and leave all as it is
            claim(output, fingerprint, steps, options, command)
            (output / "totals.json").unlink(missing_ok=True)
            totals = _run_passes(group(steps), first, options, progress)
            write_json(output / "totals.json", {"fingerprint": fingerprint, **totals.to_json()})
        else:
            logger.info("%s is complete already", output)
            _refuse_bad(totals, options)
        if not options.keep_intermediate:  # a run that was stopped behind its totals left them, too
            for leftover in output.glob(".pass-*"):
                shutil.rmtree(leftover)
    return totals


def _refuse_bad(totals: Totals, options: RunOptions) -> None:
    """Raise DataError if records were set aside where --strict is asked for."""
    if options.strict and totals.bad:
        raise DataError(
            f"{options.output} is complete without --strict, and {totals.bad.total():,} records lie in its quarantine; "
            "leave out --strict, or mend the input and write to another folder"
        )


def plan(options: RunOptions) -> list[Source]:
    """Cut the input into shards."""
    paths = [Path(path) for path in options.input]
    return [
        *plan_sources(
            paths,
            shard_bytes=options.shard_bytes,
            text_key=options.text_key,
            id_key=options.id_key,
            max_document_bytes=options.max_document_bytes,
        )
    ]


def _run_passes(
    passes: Sequence[_Pass], sources: Sequence[Source], options: RunOptions, progress: Progress
) -> Totals:
    output = options.folder
    whole = Totals()
    for number, one in enumerate(passes):
        is_last = number == len(passes) - 1
        records = output if is_last else output / f".pass-{number}" / "records"
        kind = options.format if is_last else "jsonl.zst"
        layout = PassLayout(output, records, number, kind, is_last)
        corpus = Corpus(
            sources,
            output / f".pass-{number}" / "work",
            pool_of(options),
            options.max_document_bytes,
            progress,
        )
        stages = one.stages if number else (read_stage(options.max_document_bytes), *one.stages)
        if one.comparison is None:
            totals = _go_over(corpus, same_for_all(stages), layout, strict=options.strict)
        else:
            corpus.work.mkdir(parents=True, exist_ok=True)
            with one.comparison.guard():
                stages_of = _in_front(one.comparison.decide(corpus), stages)
                totals = _go_over(corpus, stages_of, layout, strict=options.strict)
                one.comparison.finish(corpus)
        if number:
            whole.follow(totals)
        else:
            whole = totals
        if not is_last:
            sources = plan_sources(
                sorted(records.glob("*.jsonl.zst"), key=natural_key),
                shard_bytes=options.shard_bytes,
                text_key="text",
                id_key="id",
            )
    return whole


def _go_over(corpus: Corpus, stages_of: StagesOf, layout: PassLayout, *, strict: bool) -> Totals:
    """Run one pass and show it."""
    name = " ".join(stage.name for stage in stages_of(0))
    with corpus.progress(name, sum(source.num_bytes for source in corpus.sources)) as on_bytes:
        return run_pass(
            corpus.sources, stages_of, layout, pool=corpus.pool, strict=strict, on_shard=on_bytes
        )


def _in_front(stage_of: Callable[[int], Stage], stages: Sequence[Stage]) -> StagesOf:
    return lambda shard: (stage_of(shard), *stages)
