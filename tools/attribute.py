#!/usr/bin/env python3
"""Find out whether, and where, a text stands in the training data: build indexes beside token files, and ask them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import megatron.logging
from megatron.attribution import membership, report, suffix_array, word_index
from megatron.attribution.attribution import Attribution
from megatron.attribution.build import build, plan
from megatron.attribution.corpus import TokenFile, open_token_files, prefix_of
from megatron.attribution.index_file import index_path
from megatron.attribution.kinds import KINDS
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling
from megatron.cli import (
    EXIT_USER_ERROR,
    add_section,
    end_on_sigterm,
    make_parser,
    parse_known,
    run_tool,
    section_from,
)
from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.progress import progress_bar
from megatron.tokenizer.tokenizer import build_tokenizer

EXAMPLES = """\
  indexes of every kind beside two token files; run again, it makes only what is missing or stale
    python tools/attribute.py build data/py_text_document data/cpp_text_document --tokenizer-file tokenizer.json
  does this text stand in the data? (needs no tokenizer)
    python tools/attribute.py membership data/*_text_document.idx --file completion.py
  which parts of it, how often, in which files of which repositories
    python tools/attribute.py trace data/py_text_document --tokenizer-file tokenizer.json < completion.py
  the same for programs, without what an opt-out list names
    python tools/attribute.py trace data/py_text_document --tokenizer-file tokenizer.json --text 'def f(' --json \\
      --exclude-documents optout.jsonl
  files that are like it, also where names were changed
    python tools/attribute.py search data/py_text_document --tokenizer-file tokenizer.json --file completion.py
  all of these at once, with licences and a NOTICE to ship
    python tools/attribute.py query data/*_text_document.idx --tokenizer-file tokenizer.json --file completion.py
  and the steps of a training run that read the documents
    python tools/attribute.py query data/py_text_document --load runs/a --tokenizer-file tokenizer.json --file a.py
  which indexes there are, and whether they are whole
    python tools/attribute.py list data/py_text_document --verify"""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_membership(commands)
    _add_trace_search_query(commands)
    _add_list(commands)
    args = parse_known(parser, argv)
    args.prefix = list(dict.fromkeys(map(prefix_of, args.prefix)))  # PREFIX.* names each twice
    megatron.logging.configure()
    return args.run(args)


def _add(
    commands: Any, name: str, help: str, run: Callable[..., int | None]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + "."
    )
    parser.add_argument(
        "prefix",
        nargs="+",
        metavar="PREFIX",
        help="token files: the path of .bin and .idx, with or without these",
    )
    parser.set_defaults(run=run)
    return parser


def _add_build(commands: Any) -> None:
    parser = _add(commands, "build", "build the indexes that token files lack, beside them", _build)
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=list(KINDS),
        default=list(KINDS),
        help="; ".join(f"{name}: {kind.help}" for name, kind in KINDS.items()) + " (default: all)",
    )
    parser.add_argument("--again", action="store_true", help="build also what is up to date")
    add_section(parser, BuildOptions, title="how")
    add_section(parser, TokenizerConfig, title="tokenizer, with which the token files were made")


def _build(args: argparse.Namespace) -> None:
    end_on_sigterm("indexes that are finished are kept, and the same command makes the others")
    options = section_from(args, BuildOptions)
    tasks = plan(args.prefix, args.kinds, options, again=args.again)
    if tasks:
        build(tasks, build_tokenizer(section_from(args, TokenizerConfig)), options, _show)
    num_bytes = sum(KINDS[task.kind].open(task.file.prefix).num_bytes for task in tasks)
    num_current = len(args.prefix) * len(args.kinds) - len(tasks)
    print(f"built {len(tasks)} indexes, {num_bytes / 1e6:,.1f} MB; {num_current} were up to date")


@contextlib.contextmanager
def _show(name: str, total: int) -> Iterator[Callable[[int], object]]:
    with progress_bar(total, Path(name).name, "token") as bar:
        yield bar.update


def _add_question(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--text", help="the text")
    which.add_argument(
        "--file", type=Path, metavar="FILE", help="a file that holds it (default: standard input)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="mark what is found in the text (default: on a terminal)",
    )
    parser.add_argument(
        "--exclude-documents",
        nargs="+",
        default=[],
        metavar="LIST",
        help="opt-out lists, as for training: what they name is not found, at once",
    )
    parser.add_argument(
        "--exclude-documents-skip",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="token files for which such lists need not be decidable",
    )


def _question(args: argparse.Namespace) -> bytes:
    """Read the text that is asked for."""
    if args.text is not None:
        text = args.text.encode()
    elif args.file is not None:
        try:
            text = args.file.read_bytes()
        except OSError as error:
            raise ConfigError(f"--file {args.file}: {error.strerror}") from None
    else:
        text = sys.stdin.buffer.read()
    if not text.strip():
        raise ConfigError("the text is empty; give --text, --file, or standard input")
    return text


def _answer(
    args: argparse.Namespace,
    values: dict[str, Any],
    text: bytes,
    lines: Callable[..., Iterator[str]],
) -> None:
    if args.json:
        print(json.dumps(values))
        return
    colored = sys.stdout.isatty() if args.color == "auto" else args.color == "always"
    print("\n".join(lines(text, values, colored=colored)))


def _files(args: argparse.Namespace) -> list[TokenFile]:
    return open_token_files(
        args.prefix, opt_out=args.exclude_documents, skipped=args.exclude_documents_skip
    )


def _add_membership(commands: Any) -> None:
    parser = _add(
        commands,
        "membership",
        "say which parts of a text stand in the data, by their fingerprints; needs no tokenizer but for opt-out lists",
        _membership,
    )
    _add_question(parser)
    add_section(parser, TokenizerConfig, title="tokenizer, with --exclude-documents")


def _membership(args: argparse.Namespace) -> None:
    text = _question(args)
    indexes = [membership.MembershipIndex(prefix) for prefix in args.prefix]
    files, spelling = [], None
    if args.exclude_documents:
        files = _files(args)
        spelling = Spelling(build_tokenizer(section_from(args, TokenizerConfig)))
    answer = membership.ask(text, indexes, files, spelling)
    _answer(args, answer.to_json(), text, report.membership_lines)


def _add_asked(
    commands: Any, name: str, help: str, lines: Callable[..., Iterator[str]], *kinds: str
) -> argparse.ArgumentParser:
    """Add a question that token files and their tokenizer answer, of indexes of these kinds."""
    parser = _add(commands, name, help, _asked)
    parser.set_defaults(lines=lines, kinds=kinds, load=None, min_tokens=1)
    _add_question(parser)
    if suffix_array.KIND in kinds:
        parser.add_argument(
            "--min-tokens",
            type=int,
            default=16,
            help="leave out spans of fewer tokens (default: 16)",
        )
    parser.add_argument(
        "--documents",
        type=int,
        default=10,
        metavar="N",
        help="documents that are named (default: 10)",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads that search (default: 1)")
    add_section(parser, TokenizerConfig, title="tokenizer, with which the token files were made")
    return parser


def _add_trace_search_query(commands: Any) -> None:
    trace = "give the longest parts of a text that stand in the data, how often each does, and in which documents"
    _add_asked(commands, "trace", trace, report.trace_lines, suffix_array.KIND)
    search = "give the documents that are like a text"
    _add_asked(commands, "search", search, report.similar_lines, word_index.KIND)
    query = "ask indexes of all kinds: what of a text stands where, what is like it, its licences, a NOTICE to ship"
    parser = _add_asked(commands, "query", query, report.query_lines, *KINDS)
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=list(KINDS),
        default=list(KINDS),
        help="indexes to ask (default: all)",
    )
    parser.add_argument(
        "--load",
        type=Path,
        metavar="DIR",
        help="--save of a training run that read these token files: name the steps that read each document",
    )


def _asked(args: argparse.Namespace) -> None:
    text = _question(args)
    if min(args.min_tokens, args.documents, args.threads) < 1:
        raise ConfigError("--min-tokens, --documents and --threads are 1 at least")
    ask = Attribution(
        _files(args),
        build_tokenizer(section_from(args, TokenizerConfig)),
        args.kinds,
        num_documents=args.documents,
        num_threads=args.threads,
    )
    answer = ask(text, min_tokens=args.min_tokens)
    if args.load is not None:
        from megatron.training.history.trace import DocumentSteps

        steps = DocumentSteps(args.load)
        for one in [*answer.get("documents", []), *answer.get("similar", [])]:
            is_read = steps.reads(one["dataset"])  # files for validation may be among them
            reads = steps(one["dataset"], one["document"]) if is_read else []
            one["steps"] = sorted({step for step, _ in reads})
    _answer(args, answer, text, args.lines)


def _add_list(commands: Any) -> None:
    parser = _add(
        commands, "list", "say which indexes there are and whether they are up to date", _list
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all of each, and compare its SHA-256"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object an index: its header")


def _list(args: argparse.Namespace) -> int:
    is_good = True
    for prefix in args.prefix:
        for kind in KINDS:
            path = index_path(prefix, kind)
            if not path.exists():
                print(
                    json.dumps({"path": str(path), "kind": None}) if args.json else f"{path}: none"
                )
                continue
            try:
                index = KINDS[kind].open(prefix)
                if args.verify:
                    with progress_bar(index.num_bytes, "verify") as bar:
                        index.verify(bar.update)
            except DataError as error:
                is_good = False
                print(error, file=sys.stderr)
                continue
            if args.json:
                print(json.dumps({"path": str(path), **index.facts}))
            else:
                print(report.index_line(path, index))
    return 0 if is_good else EXIT_USER_ERROR


if __name__ == "__main__":
    run_tool(main)
