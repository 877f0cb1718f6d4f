"""The judge's side of a trial: runs the tests, or reads how a program with its own ended, and tells the parent.

No line of a candidate runs here, and its values arrive as fresh objects of builtin types. Imports the standard library
only.
"""

from __future__ import annotations

import builtins
import socket
from typing import Any

from megatron.evaluation.isolation import context, program, wire

# Made from more than a text. The last is of Python 3.11.
COMPOUND = (
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
    getattr(builtins, "ExceptionGroup", None),
)


class Ended(BaseException):
    """The guest can not answer any more, or said what no guest says. No test can catch it by `except Exception`."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class CandidateError(Exception):
    """The candidate raised an exception that is no builtin."""


class Guest:
    """The other end of the guest's channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.num_calls = 0
        self.ended: Ended | None = None  # the first: a test that catches it changes nothing

    def load(self, program: str) -> None:
        """Have the program run. Raises Ended."""
        reply = self.ask({"program": program})
        if "error" in reply:
            kind, text = _words(reply)
            is_syntax = kind in ("SyntaxError", "IndentationError", "TabError")
            raise self._end("syntax" if is_syntax else "error", f"{kind}: {text}")

    def call(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Give the value of a function of the program. Raises what it raised, or Ended."""
        if self.ended is not None:
            raise self.ended
        self.num_calls += 1
        try:
            message = {
                "name": name,
                "arguments": wire.encode(list(arguments)),
                "keywords": wire.encode(keywords),
                "number": self.num_calls,
            }
        except wire.WireError as error:
            raise self._end("unsupported", f"an argument cannot cross: {error}") from None
        reply = self.ask(message)
        if reply.get("number") != self.num_calls:
            raise self._end("forged", "an answer to another call")
        if "refused" in reply:
            raise self._end("no-plain-value", str(reply["refused"])[:200])
        if "error" in reply:
            kind, text = _words(reply)
            known = getattr(builtins, kind, None)
            if isinstance(known, type) and issubclass(known, Exception) and known not in COMPOUND:
                raise known(text)
            raise CandidateError(f"{kind}: {text}")
        if "value" not in reply:
            raise self._end("forged", "an answer without a value")
        try:
            return wire.decode(reply["value"])
        except (wire.WireError, RecursionError) as error:
            raise self._end("forged", str(error)[:200]) from None

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and give the answer. Raises Ended."""
        try:
            wire.send(self._channel, message)
            return wire.receive(self._channel)
        except (EOFError, OSError):
            raise self._end("exited", "the program ended before its answer") from None
        except (wire.WireError, RecursionError) as error:
            raise self._end("forged", str(error)[:200]) from None

    def _end(self, outcome: str, detail: str) -> Ended:
        self.ended = self.ended or Ended(outcome, detail)
        return self.ended


def _words(reply: dict[str, Any]) -> tuple[str, str]:
    return str(reply.get("error"))[:80], str(reply.get("text", ""))[:200]


def run(parent: socket.socket, channel: socket.socket) -> None:
    """Judge one candidate. The parent reads the verdict, with its nonce, from a socket that no guest has."""
    try:
        trial = wire.receive(parent)
        judge = {"calls": _judge_calls, "program": _judge_program, "context": _judge_context}
        outcome, detail = judge[trial["kind"]](trial, Guest(channel))
        wire.send(parent, {"nonce": trial["nonce"], "outcome": outcome, "detail": detail})
    except (EOFError, OSError):
        return


def _judge_program(trial: dict[str, Any], guest: Guest) -> tuple[str, str]:
    try:
        reply = guest.ask({"files": trial["files"], "steps": trial["steps"]})
        return program.outcome_of(trial, reply)
    except Ended as end:
        return end.outcome, str(end)
    except (KeyError, TypeError, ValueError) as error:
        return "forged", f"a report that no guest writes: {error}"[:300]


def _judge_context(trial: dict[str, Any], guest: Guest) -> tuple[str, str]:
    try:
        if trial["is_apart"]:
            outcome, detail = context.judge_apart(trial, guest.ask)
        else:
            outcome, detail = context.outcome_of(guest.ask({"context": trial}))
    except BaseException as error:  # whatever a test may raise
        return _failure(error, guest)
    if guest.ended is not None:
        return guest.ended.outcome, str(guest.ended)
    return outcome, detail


def _judge_calls(trial: dict[str, Any], guest: Guest) -> tuple[str, str]:
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(trial["setup"], "<setup>", "exec"), names)
        for name in trial["entry_points"]:
            names[name] = _stand_in(guest, name)
        tests = compile(trial["tests"], "<tests>", "exec")
    except BaseException as error:  # the task's own text
        return "unsupported", f"the tests do not start: {type(error).__name__}: {error}"[:300]
    try:
        guest.load(trial["program"])
        exec(tests, names)
    except BaseException as error:  # whatever a test may raise
        return _failure(error, guest)
    if guest.ended is not None:
        return guest.ended.outcome, str(guest.ended)
    if guest.num_calls == 0:
        return "unsupported", "the tests called nothing"
    return "passed", ""


def _failure(error: BaseException, guest: Guest) -> tuple[str, str]:
    """Say what an exception out of the tests means: that the guest ended, if it did."""
    if guest.ended is not None:
        return guest.ended.outcome, str(guest.ended)
    is_wrong = isinstance(error, AssertionError)
    return "wrong" if is_wrong else "error", f"{type(error).__name__}: {error}"[:300]


def _stand_in(guest: Guest, name: str) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        return guest.call(name, arguments, keywords)

    return call
