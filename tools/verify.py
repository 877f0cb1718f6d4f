#!/usr/bin/env python3
"""Check token files and checkpoints, and look into what a run has read; starts nothing and needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import logging
from megatron.cli import (
    EXIT_FAILURE,
    EXIT_USER_ERROR,
    add_section,
    exit_code,
    make_parser,
    parse_known,
    run_tool,
    section_from,
)
from megatron.data.verify_dataset import dataset_files, verify_dataset
from megatron.errors import ConfigError, MegatronError
from megatron.options import TokenizerConfig
from megatron.parallel.launch import Launch
from megatron.progress import progress_bar
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.training.history.replay_plan import plan_replay
from megatron.training.history.trace import (
    DocumentSteps,
    RunRecord,
    RunTrace,
    describe,
    samples_of_step,
    to_json,
)

if TYPE_CHECKING:
    from megatron.checkpoint.compare import TensorSource

EXAMPLES = """\
  are these datasets whole, and made with this tokenizer?
    python tools/verify.py data data/py_text_document data/cpp_text_document --tokenizer-file tokenizer.json
  which files did process 3 read in step 1200?
    python tools/verify.py sample --load runs/a --step 1200 --rank 3
  the same for programs, and a sample of a validation set by number with its text
    python tools/verify.py sample --load runs/a --step 1200 --rank 3 --json
    python tools/verify.py sample --load runs/a --set valid --sample 17 --text
  which steps read a document (by its token file and number, as tools/attribute.py names it)?
    python tools/verify.py steps --load runs/a --dataset data/py_text_document --document 17
  does this machine compute step 1200 as the run did, and twice alike? (as many processes as the run had)
    python tools/launch.py --standalone --nproc-per-node 8 tools/verify.py replay --load runs/a --step 1200 --times 2
  what does the latest checkpoint of a run hold, and where do two first differ?
    python tools/verify.py checkpoint runs/a
    python tools/verify.py checkpoint runs/a/iter_0000200 --against runs/b/iter_0000200 --tensors 'model.*'"""

EXIT_DIFFERENT = EXIT_FAILURE  # as cmp and diff


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_data(commands)
    _add_sample(commands)
    _add_steps(commands)
    _add_replay(commands)
    _add_checkpoint(commands)
    args = parse_known(parser, argv)
    return args.run(args)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "data",
        help="check token files: all that is in them, and their checksums",
        description="Read all files of datasets once: header, sizes, pointers, documents, the range of ids, provenance "
        "and checksums. One line for each dataset; exit code 2 and a line for each finding if something is wrong.",
    )
    parser.add_argument(
        "prefix", nargs="+", metavar="PREFIX", help="the path of .bin and .idx without these"
    )
    add_section(parser, TokenizerConfig, title="tokenizer, to check that ids are of it")
    parser.set_defaults(run=_data)


def _data(args: argparse.Namespace) -> int:
    is_given = any(hasattr(args, field.name) for field in dataclasses.fields(TokenizerConfig))
    tokenizer = build_tokenizer(section_from(args, TokenizerConfig)) if is_given else None
    files = [path for prefix in args.prefix for path in dataset_files(prefix)]
    total = sum(path.stat().st_size for path in files)
    with progress_bar(total, "verify") as bar:
        reports = [
            verify_dataset(prefix, tokenizer=tokenizer, on_bytes=bar.update)
            for prefix in args.prefix
        ]
    for report in reports:
        print(report.describe())
        for finding in report.findings:
            print(f"  {finding}", file=sys.stderr)
    return EXIT_USER_ERROR if any(report.findings for report in reports) else 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--load", type=Path, required=True, metavar="DIR", help="a run's --save, or an iter_ folder"
    )
    parser.add_argument(
        "--world-size", type=int, help="processes of the run, if its checkpoints do not say"
    )


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "sample",
        help="name the documents that samples were made of",
        description="Name the documents that the samples of a step, or samples by number, were made of. Reads the "
        "JSON files of a run's checkpoints and its token files, whose paths are as the run was given them: start it "
        "in the same folder.",
    )
    _add_run(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, help="training samples of this step, from 1 as logged")
    which.add_argument("--sample", type=int, nargs="+", metavar="N", help="samples by number")
    which.add_argument(
        "--skipped",
        action="store_true",
        help="training samples that the run left out when it went back to a checkpoint",
    )
    parser.add_argument(
        "--rank",
        type=int,
        help="with --step: only what this process read, as torchrun counts processes; those of one tensor and "
        "pipeline parallel group read the same (default: the whole step)",
    )
    parser.add_argument(
        "--set", default="train", metavar="NAME", help="with --sample: train (default), valid, …"
    )
    parser.add_argument(
        "--text", action="store_true", help="also what the model reads, after fill-in-the-middle"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a sample")
    parser.set_defaults(run=_sample)


def _sample(args: argparse.Namespace) -> None:
    if args.sample is None and args.set != "train":
        raise ConfigError(
            f"--step and --skipped are of training, and a validation of {args.set} reads its samples from 0 on every "
            "time; give --sample"
        )
    if args.rank is not None and args.step is None:
        raise ConfigError("--rank says who read the samples of a --step; leave it out")
    record = RunRecord.open(args.load, args.step)
    if args.skipped:
        numbers = [number for one in record.skipped for number in range(one.start, one.stop)]
    else:
        numbers = args.sample or samples_of_step(
            record, args.step, rank=args.rank, world_size=args.world_size
        )
    run = RunTrace(record)
    for number in numbers:
        traced = run.trace(args.set, number)
        text = run.text(args.set, number) if args.text else None
        if args.json:
            print(json.dumps(to_json(traced, args.set) | ({"text": text} if args.text else {})))
            continue
        print(*describe(traced, args.set), sep="\n")
        if text is not None:
            print(*(f"  | {line}" for line in text.splitlines()), sep="\n")
    if not args.json:
        print(f"traced {len(numbers)}, with the options of {record.folder}")


def _add_steps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "steps",
        help="name the steps that read a document",
        description="Name the training steps that read a part of a document, up to the last checkpoint. Reads what "
        "`sample` reads.",
    )
    _add_run(parser)
    parser.add_argument(
        "--dataset", required=True, metavar="PREFIX", help="token file, or its last part"
    )
    parser.add_argument("--document", type=int, required=True, metavar="N", help="counted from 0")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=_steps)


def _steps(args: argparse.Namespace) -> None:
    steps = DocumentSteps(args.load, args.world_size)
    found = steps(args.dataset, args.document)
    if args.json:
        reads = [{"step": step, "sample": sample} for step, sample in found]
        values = {"dataset": args.dataset, "document": args.document, "reads": reads}
        print(json.dumps(values))
        return
    for step, sample in found:
        print(f"step {step}: sample {sample}")
    print(f"read by {len({step for step, _ in found})} steps, up to {steps.record.folder}")


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="compute a step again and compare it with what the run recorded",
        description="Compute a step again from the newest checkpoint before it, with the run's own options and as many "
        "processes as it had, and compare loss and gradient norm with metrics.jsonl and, where the run saved after the "
        "step, all weights and moments, bit by bit. Writes nothing. Exit code 0 if all is equal and 1 if not.",
    )
    parser.add_argument("--load", type=Path, required=True, metavar="DIR", help="a run's --save")
    parser.add_argument("--step", type=int, required=True, help="from 1, as logged")
    parser.add_argument(
        "--times", type=int, default=1, help="replays, compared with each other too (default: 1)"
    )
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    if args.times < 1:
        raise ConfigError(f"--times {args.times}: at least 1")
    try:
        plan = plan_replay(args.load, args.step, launch.world_size)
        # Imported here: it needs torch, which a user's mistake does not wait for.
        from megatron.training.history.replay import replay_times

        is_first = launch.rank == 0
        total = plan.num_steps * args.times
        with progress_bar(total, "replay", "step", is_silent=not is_first) as bar:
            verdict = replay_times(plan, launch, args.times, on_step=bar.update)
    except MegatronError as error:
        if launch.local_rank == 0:
            raise
        return exit_code(error)  # the node's first process sees the same and says it
    if is_first:
        print(*verdict.lines, sep="\n")
    return 0 if verdict.is_equal else EXIT_DIFFERENT


def _add_checkpoint(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "checkpoint",
        help="print what a checkpoint holds, or where two of any layouts differ",
        description="Read all of a checkpoint: first every file, to see that it has the SHA-256 that was written, "
        "then the tensors: a line for each whole tensor with shape, dtype, norm and SHA-256 of "
        "its values, then totals and how far the run had come. With --against also where a second one differs, bit "
        "by bit; exit code 0 if the two are equal and 1 if not, 2 for a checkpoint that cannot be read.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="DIR",
        help="a run's --save (its latest), an iter_ folder, or a folder of transformers (GPTBigCode, Starcoder2)",
    )
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with this one, of any layout"
    )
    parser.add_argument(
        "--tensors",
        default="*",
        metavar="PATTERN",
        help="only tensors with such names, as 'model.layers.0.*'; with --against the state is compared all the same, but for one that was converted",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a tensor, and one with the totals"
    )
    parser.set_defaults(run=_checkpoint)


def _checkpoint(args: argparse.Namespace) -> int:
    # Imported here: they need torch, which the other commands start without.
    from megatron.checkpoint import compare, describe
    from megatron.convert.imported import CONVERTED_FROM

    first = _open_checkpoint(args.checkpoint)
    second = _open_checkpoint(args.against) if args.against else None
    for source in (first, second):
        _verify_files(source)
    pairs = compare.pair_tensors(first, second, args.tensors)
    totals, total = compare.Totals(), sum(pair.num_bytes for pair in pairs)
    with progress_bar(total, "verify") as bar:
        for pair in pairs:
            summary, difference = compare.examine(pair, first, second, on_bytes=bar.update)
            totals.add(pair, summary, difference)
            lines = describe.describe_tensor(pair, summary, difference)
            if args.json:
                lines = [json.dumps(describe.tensor_to_json(pair, summary, difference))]
            bar.write("\n".join(lines))
    # A folder of transformers has no state to compare, and a conversion's is of no run: neither schedule nor progress.
    fields, converted = None, []
    if second is not None:
        converted = [one for one in (first, second) if CONVERTED_FROM in one.state]
        if first.state and second.state and not converted:
            fields = compare.differing_fields(first.state, second.state)
    if args.json:
        values = {"checkpoint": str(first.folder)} | describe.totals_to_json(totals, first.state)
        if second is not None:
            values |= {"against": str(second.folder)} | describe.verdict_to_json(totals, fields)
        print(json.dumps(values))
    else:
        print(f"{first.folder}: {describe.describe_totals(totals)}")
        print("state: " + (", ".join(describe.describe_state(first.state)) or "none"))
        for one in converted:
            print(f"state: not compared, as {one.folder} was converted and holds weights alone")
        if second is not None:
            print(*describe.describe_verdict(totals, fields), sep="\n")
    return EXIT_DIFFERENT if totals.different or fields else 0


def _open_checkpoint(path: Path) -> TensorSource:
    from megatron.checkpoint.layout import find_checkpoint
    from megatron.checkpoint.reader import CheckpointReader
    from megatron.convert.hf_folder import is_hf_folder
    from megatron.convert.hf_import import open_hf
    from megatron.convert.imported import ImportReader

    if is_hf_folder(path):
        # Only weights are compared: what they are activated by is no matter.
        return ImportReader(open_hf(path, accepts_exact_gelu=True), path)
    return CheckpointReader.open(find_checkpoint(path))


def _verify_files(source: TensorSource | None) -> None:
    """Read all files of a checkpoint of ours. Raises CheckpointError unless they are what was written."""
    from megatron.checkpoint.reader import CheckpointReader

    if isinstance(source, CheckpointReader):
        with progress_bar(source.num_bytes, "hashes") as bar:
            source.verify(bar.update)


if __name__ == "__main__":
    run_tool(main)
