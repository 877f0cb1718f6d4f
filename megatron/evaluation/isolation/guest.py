"""The candidate's side of a trial: runs its program, then answers calls with plain data.

It holds one socket, to the judge, over which nothing but arguments comes and values go. It knows neither tests nor
expected values, and no message of it says that anything passed. Of programs in other languages (program.py) and
snippets in a context (context.py) it is those files that say what they can. Imports the standard library only.
"""

from __future__ import annotations

import socket
import sys
import types
from typing import Any

from megatron.evaluation.isolation import context, program, wire

MODULE = "candidate"


def run(channel: socket.socket) -> None:
    """Run the program that comes first and answer the calls that follow, until the channel ends."""
    try:
        first = wire.receive(channel)
        if "steps" in first:
            wire.send(channel, program.run_steps(first))
            return
        if "context" in first:
            wire.send(channel, context.run_together(first["context"]))
            return
        if "code" in first:
            context.answer(first, channel)
            return
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        wire.send(channel, _load(first["program"], module))
        while True:
            call = wire.receive(channel)
            wire.send(channel, {**_call(module, call), "number": call["number"]})
    except (EOFError, OSError):
        return


def _load(program: str, module: types.ModuleType) -> dict[str, Any]:
    try:
        exec(compile(program, "<candidate>", "exec"), module.__dict__)
    except BaseException as error:  # whatever a program may raise
        return wire.describe(error)
    return {}


def _call(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    try:
        function = module.__dict__[call["name"]]
        arguments = wire.decode(call["arguments"])
        keywords = wire.decode(call["keywords"])
        value = function(*arguments, **keywords)
    except BaseException as error:  # whatever a program may raise
        return wire.describe(error)
    try:
        return {"value": wire.encode(value)}
    except (wire.WireError, RecursionError) as error:
        return {"refused": str(error)}
