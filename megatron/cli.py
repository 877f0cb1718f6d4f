"""From a command line to a `Config`: one flag for each field, a YAML file of defaults below the flags.

Errors of the user become one line on stderr and exit code 2 (`run_main`). No torch.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from megatron.config import Config
from megatron.errors import ConfigError, LostPeer, MegatronError, TrainingError, not_compiled
from megatron.megatron_flags import ALIASES, answer_to
from megatron.option_field import flag_of
from megatron.presets import (
    check_text,
    nearest,
    options_of,
    read_defaults,
    sections,
)

Section = TypeVar("Section")

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: left early because it was asked to, having saved
EXIT_LOST_PEER = 76  # EX_PROTOCOL: another process failed or is lost, and this one ends with it
EXIT_HUNG = 124  # what timeout(1) gives: the watchdog ended a run
EXIT_SIGNAL = 128  # + the signal's number, as a shell reports it: left at once, nothing saved
EXIT_INTERRUPTED = 130  # 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigErrors, so that a tool fails in one way.

    It takes no beginnings of flags for them, nor do the parsers of its commands, which are of its class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            message.replace(": ignored explicit argument", " takes no value, and is given")
        )


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Make a parser with a one-line description and the examples below the options."""
    return _Parser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_known(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse argv; a ConfigError names every unknown flag, and what to use instead or the nearest one."""
    known = _flags_of(parser)
    argv = sys.argv[1:] if argv is None else argv
    for word in argv:
        check_text("an argument", word)
    try:
        args, unknown = parser.parse_known_args(argv)
    except ConfigError:
        # What is missing or wrong may be what a misspelled flag was meant to give.
        unknown = [word for word in argv if word.startswith("--") and _flag_in(word) not in known]
        if not unknown:
            raise
    if not unknown:
        return args
    flags = [_flag_in(word) for word in unknown if re.match("--?[a-zA-Z]", word)]
    if flags:
        raise ConfigError(_explain(flags, known))
    before = argv[list(argv).index(unknown[0]) - 1]
    if before in known:
        raise ConfigError(f"{before} takes no value, and {unknown[0]!r} follows it; leave that out")
    raise ConfigError(f"{unknown[0]!r} belongs to no option; options start with --")


def _flag_in(word: str) -> str:
    return word.split("=", 1)[0]


def _explain(unknown: Sequence[str], known: set[str]) -> str:
    """Say of each unknown flag what to do, those with one answer together."""
    flags: dict[str, list[str]] = {}
    for flag in dict.fromkeys(unknown):
        flags.setdefault(_answer(flag, known), []).append(flag)
    number = sum(map(len, flags.values()))
    if number == 1:
        ((answer, (flag,)),) = flags.items()
        return f"{flag} is not an option; {answer}"
    parts = [f"{', '.join(names)} ({answer})" for answer, names in flags.items()]
    return f"{number} flags are not options: {'; '.join(parts)}"


def _answer(flag: str, known: set[str]) -> str:
    """Say what to do instead of an unknown flag."""
    answer = answer_to(flag)
    if answer is not None and {*re.findall(r"--[a-z][\w-]*", answer)} <= known:
        return answer
    if (opposite := flag.replace("--no-", "--", 1)) in known:
        return f"leave out {opposite}, too, which is off unless it is given"
    names = {name.lstrip("-"): name for name in known}
    near = nearest(flag.lstrip("-"), names)
    return f"did you mean {names[near]}?" if near else "see --help"


def _flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Give the flags of a parser and of its subcommands."""
    flags: set[str] = set()
    for action in parser._actions:
        flags.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*map(_flags_of, action.choices.values()))
    return flags


def add_section(parser: argparse.ArgumentParser, section: type, title: str | None = None) -> None:
    """Add a flag for every field of a section (a dataclass of `megatron.options`)."""
    group = parser.add_argument_group(
        title or section.__name__, (section.__doc__ or "").split("\n")[0]
    )
    for field, value_type in options_of(section):
        is_plain = field.default is None or field.default is False or field.default == ()
        default = "" if is_plain else f" (default: {field.default})"
        settings: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": (field.metadata["help"] + default).replace("%", "%%"),
        }
        origin = typing.get_origin(value_type)
        if value_type is bool:
            settings["action"] = "store_true"
        elif origin is Literal:
            settings["choices"] = typing.get_args(value_type)
            if field.metadata["parse"]:
                settings["type"] = field.metadata["parse"]
        elif origin is tuple:
            settings |= {"nargs": "+", "type": typing.get_args(value_type)[0]}
        else:
            settings["type"] = field.metadata["parse"] or value_type
        if field.metadata["metavar"] and value_type is not bool:
            settings["metavar"] = field.metadata["metavar"]
        group.add_argument(flag_of(field), **settings)
    names = {field.name for field, _ in options_of(section)}
    for flag, (target, value, help_text) in ALIASES.items():
        if target in names:
            group.add_argument(
                flag,
                dest=_alias_of(target),
                action="store_const",
                const=value,
                default=argparse.SUPPRESS,
                help=help_text,
            )


def _alias_of(name: str) -> str:
    """Name what an alias of an option says, which may be something else than the option does."""
    return f"{name} by an alias"


def section_from(
    args: argparse.Namespace, section: type[Section], defaults: dict[str, Any] | None = None
) -> Section:
    """Build a section from parsed flags; what they leave out comes from defaults, then the fields."""
    given = dict(defaults or {})
    said = vars(args)
    for field, value_type in options_of(section):
        alias = _alias_of(field.name)
        if alias in said:
            given[field.name] = said[alias]
        if field.name in said:
            value = said[field.name]
            if alias in said and value != said[alias]:
                raise ConfigError(
                    f"{flag_of(field)} is given as {value} and, by another flag, as {said[alias]}; keep one of them"
                )
            given[field.name] = tuple(value) if typing.get_origin(value_type) is tuple else value
    return section(**given)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config and the flags of every section."""
    parser.add_argument("--config", type=Path, help="YAML file of options that flags override")
    parser.add_argument(
        "--distributed-timeout",
        type=float,
        metavar="SECONDS",
        help="as --distributed-timeout-minutes, in seconds",
    )
    for name, section in sections().items():
        add_section(parser, section, title=name)


def config_from(args: argparse.Namespace) -> Config:
    """Build the Config of flags added by `add_config`: flags, then --config, then defaults."""
    defaults = read_defaults(args.config) if args.config else {}
    if args.distributed_timeout is not None:
        setattr(args, _alias_of("distributed_timeout_minutes"), args.distributed_timeout / 60)
    built: dict[str, Any] = {}
    for name, section in sections().items():
        names = {field.name for field, _ in options_of(section)}
        built[name] = section_from(
            args, section, {key: value for key, value in defaults.items() if key in names}
        )
    return Config(**built)


def exit_code(error: MegatronError) -> int:
    """Give the code that a tool ends with after this error."""
    if isinstance(error, LostPeer):
        return EXIT_LOST_PEER
    return EXIT_FAILURE if isinstance(error, TrainingError) else EXIT_USER_ERROR


def leave_at_once(code: int) -> NoReturn:
    """End this process from any thread, whatever its main thread waits for: nothing is unwound, joined or saved.

    The commit protocol of checkpoints makes it safe: a process may end between any two instructions.
    """
    sys.stderr.flush()
    os._exit(code)


def one_line(text: str) -> str:
    """Give a message as one line: names and libraries' messages may hold ends of lines and control characters."""
    joined = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def end_on_sigterm(advice: str) -> None:
    """Let SIGTERM end a tool as an exit does, with what is open closed, and say in a line what to do then."""

    def end(number: int, frame: object) -> NoReturn:
        # Not by print: the signal may come in the middle of one.
        os.write(2, f"{Path(sys.argv[0]).name}: terminated; {advice}\n".encode())
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's main and leave with the exit code that `run_main` gives.

    A process with torch then ends without taking its interpreter down. A thread of a process group lets go of the last
    tensor that it sent when it gets to it; where it has to wait for Python's lock until the interpreter ends, it is
    ended inside of a destructor, and that aborts the process (SIGABRT).
    """
    codes = [EXIT_FAILURE]  # of an error that nobody expects, whose traceback Python writes
    atexit.register(lambda: _leave_torch(codes[-1]))  # registered first, it runs last
    codes.append(run_main(main))
    sys.exit(codes[-1])


def _leave_torch(code: int) -> None:
    """End this process if it has loaded torch: all that is to be done at an exit is done."""
    if "torch" in sys.modules:
        sys.stdout.flush()
        leave_at_once(code)


def run_main(main: Callable[[], int | None]) -> int:
    """Run a tool's main and give its exit code; a user's mistake is one line and code 2."""
    name = Path(sys.argv[0]).name
    try:
        return main() or 0
    except MegatronError as error:
        print(f"{name}: error: {one_line(str(error))}", file=sys.stderr)
        code = exit_code(error)
    except ImportError as error:
        if (line := not_compiled(error)) is None:
            raise
        print(f"{name}: error: {line}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader of our output left (`… | head`): not an error, but stdout must not be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            f"{name}: error: a name is too long for a file: {error.filename!r:.80}", file=sys.stderr
        )
        code = EXIT_USER_ERROR
    except SystemExit as leaving:  # --help, or a signal
        code = int(leaving.code or 0)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    return code
