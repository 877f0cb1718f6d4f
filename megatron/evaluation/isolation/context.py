"""DS-1000's way of testing: a snippet is put into a context, run by `exec`, and what it left is looked at.

Apart: the tests run in the judge, where `exec` is ours: it has the guest run the code in the environment that the tests
gave, and brings back what the code left there, as plain data. Together: tests and snippet run in the guest's process, for
what cannot cross, such as a figure or a fitted model. The verdict is then that process's word, and a program made to
deceive can give it. Imports the standard library only, and array_wire.py where it runs.
"""

from __future__ import annotations

import base64
import builtins
import pickle
import socket
import types
from collections.abc import Callable
from typing import Any

from megatron.evaluation.isolation import array_wire, wire

Ask = Callable[[dict[str, Any]], dict[str, Any]]
RESULT = "result"  # where DS-1000's contexts leave what is tested
DETAIL_CHARACTERS = 300


def judge_apart(trial: dict[str, Any], ask: Ask) -> tuple[str, str]:
    """Run the tests here and the snippet in the guest. Raises what the tests raise."""
    names: dict[str, Any] = {"__name__": "context"}
    exec(compile(trial["context"], "<context>", "exec"), names)
    refused: dict[str, str] = {}
    calls: list[str] = []

    def run_in_guest(code: Any, environment: dict[str, Any] | None = None, *_: Any) -> None:
        environment = {} if environment is None else environment
        given = {key: value for key, value in environment.items() if not key.startswith("__")}
        data = base64.b64encode(pickle.dumps(given)).decode()
        calls.append(str(code))
        reply = ask({"code": str(code), "environment": data})
        if "error" in reply:
            raise _exception(reply)
        refused.update({str(name): str(why) for name, why in dict(reply["refused"]).items()})
        for name, value in dict(reply["values"]).items():
            environment.setdefault(str(name), array_wire.decode(value))

    names["exec"] = run_in_guest
    try:
        names["test_execution"](trial["solution"])
        if "test_string" in names:
            names["test_string"](trial["solution"])
    except (pickle.PicklingError, wire.WireError) as error:
        return "unsupported", f"what the tests give cannot cross: {error}"[:DETAIL_CHARACTERS]
    except KeyError as error:
        name = str(error.args[0]) if error.args else ""
        if name not in refused:
            raise
        return "no-plain-value", refused[name][:DETAIL_CHARACTERS]
    return ("passed", "") if calls else ("unsupported", "the tests ran nothing")


def _exception(reply: dict[str, Any]) -> Exception:
    kind, text = str(reply["error"])[:80], str(reply.get("text", ""))[:DETAIL_CHARACTERS]
    known = getattr(builtins, kind, None)
    # never an AssertionError: that is what the tests themselves say
    return RuntimeError(f"{kind}: {text}" if isinstance(known, type) else text)


def answer(message: dict[str, Any], channel: socket.socket) -> None:
    """Run what the judge sends, until the channel ends. The guest's side."""
    while True:
        reply = _run(message)
        try:
            wire.send(channel, reply)
        except wire.WireError:  # too long: what is looked at, alone
            values = {name: value for name, value in reply["values"].items() if name == RESULT}
            wire.send(channel, {**reply, "values": values})
        message = wire.receive(channel)


def _run(message: dict[str, Any]) -> dict[str, Any]:
    environment = pickle.loads(base64.b64decode(message["environment"]))
    before = set(environment)
    try:
        exec(compile(message["code"], "<candidate>", "exec"), environment)
    except BaseException as error:  # whatever a program may raise
        return wire.describe(error)
    values, refused = {}, {}
    for name in environment:
        value = environment[name]
        is_code = isinstance(value, (types.ModuleType, types.FunctionType, type))
        if name in before or name.startswith("__") or is_code:
            continue
        try:
            values[name] = array_wire.encode(value)
        except BaseException as error:  # of the program's own class
            refused[name] = str(wire.describe(error)["text"])
    return {"values": values, "refused": refused}


def run_together(trial: dict[str, Any]) -> dict[str, Any]:
    """Run tests and snippet here, and say how that ended. The guest's side."""
    names: dict[str, Any] = {"__name__": "context"}
    try:
        exec(compile(trial["context"], "<context>", "exec"), names)
        names["test_execution"](trial["solution"])
        if "test_string" in names:
            names["test_string"](trial["solution"])
    except BaseException as error:  # whatever tests or program raise
        return wire.describe(error)
    return {"passed": True}


def outcome_of(reply: dict[str, Any]) -> tuple[str, str]:
    """Say how it ended by the guest's own word. The judge's side."""
    if "error" in reply:
        kind, text = str(reply["error"])[:80], str(reply.get("text", ""))[:DETAIL_CHARACTERS]
        outcome = {"AssertionError": "wrong", "SyntaxError": "syntax"}.get(kind, "error")
        return outcome, f"{kind}: {text}"
    return ("passed", "") if reply.get("passed") is True else ("forged", "no report")
