"""The candidate's side of a trial: runs its program, then answers calls with plain data.

It holds one socket, to the judge, over which nothing but arguments comes and values go. It knows neither tests nor
expected values, and no message of it says that anything passed. Imports the standard library only.
"""

from __future__ import annotations

import socket
import sys
import types
from typing import Any

from megatron.evaluation import wire

MODULE = "candidate"


def run(channel: socket.socket) -> None:
    """Run the program that comes first and answer the calls that follow, until the channel ends."""
    try:
        program = wire.receive(channel)["program"]
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        wire.send(channel, _load(program, module))
        while True:
            call = wire.receive(channel)
            wire.send(channel, {**_call(module, call), "number": call["number"]})
    except (EOFError, OSError):
        return


def _load(program: str, module: types.ModuleType) -> dict[str, Any]:
    try:
        exec(compile(program, "<candidate>", "exec"), module.__dict__)
    except BaseException as error:  # whatever a program may raise
        return _error(error)
    return {}


def _call(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    try:
        function = module.__dict__[call["name"]]
        arguments = wire.decode(call["arguments"])
        keywords = wire.decode(call["keywords"])
        value = function(*arguments, **keywords)
    except BaseException as error:  # whatever a program may raise
        return _error(error)
    try:
        return {"value": wire.encode(value)}
    except (wire.WireError, RecursionError) as error:
        return {"refused": str(error)}


def _error(error: BaseException) -> dict[str, Any]:
    kind = next(
        (base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"), ""
    )
    try:
        text = str(error)[:200]
    except BaseException:  # of the program's own class
        text = ""
    return {"error": kind, "text": text}
