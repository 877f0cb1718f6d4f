"""Messages between processes that do not trust each other: plain data as JSON, with the types that JSON lacks.

What is decoded is made of exact builtin types, whatever the sender's objects were: no method crosses. Imports
the standard library only.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_BYTES = 8 << 20
MAX_NATURAL = 1 << 53
HEADER = struct.Struct("!I")
# Of a trial's end, from the worker: exit codes of guest and judge; whether memory was over.
STATUS = struct.Struct("!ii?")


class WireError(ValueError):
    """Bytes that are no message, or a value that cannot cross."""


def encode(value: Any, more: Callable[[Any], Any] | None = None) -> Any:
    """Give a value as JSON data. A subclass of a builtin crosses as the builtin. Raises WireError for another type.

    more: gives the data of types beyond Python's own, and None for others.
    """
    kind = type(value)
    if more is not None:
        found = more(value)
        if found is not None:
            return found
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, float):
        return float.__mul__(value, 1.0)
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if -MAX_NATURAL < number < MAX_NATURAL else {"x": hex(number)}
    if isinstance(value, str):
        return str.__str__(str.__getitem__(value, slice(None)))
    if isinstance(value, list):
        return [encode(item, more) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"t": [encode(item, more) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[encode(key, more), encode(item, more)] for key, item in dict.items(value)]}
    if isinstance(value, set):
        return {"s": [encode(item, more) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"z": [encode(item, more) for item in frozenset.__iter__(value)]}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"a" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    raise WireError(f"a value of type {kind.__name__} is no plain data")


def decode(data: Any, more: Callable[[str, Any], Any] | None = None) -> Any:
    """Give the value of JSON data, made of builtin types. Raises WireError for what no value is written as.

    more: gives the value of a tag of another type, or raises WireError.
    """
    if isinstance(data, list):
        return [decode(item, more) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise WireError("a value has one tag")
    ((tag, body),) = data.items()
    try:
        match tag:
            case "t":
                return tuple(decode(item, more) for item in body)
            case "d":
                return {decode(key, more): decode(item, more) for key, item in body}
            case "s":
                return {decode(item, more) for item in body}
            case "z":
                return frozenset(decode(item, more) for item in body)
            case "c":
                real, imaginary = body
                return complex(float(real), float(imaginary))
            case "x":
                return int(body, 16)
            case "b":
                return bytes.fromhex(body)
            case "a":
                return bytearray.fromhex(body)
    except (TypeError, ValueError) as error:
        raise WireError(f"damaged value: {error}") from None
    if more is not None:
        return more(tag, body)
    raise WireError(f"a value has no tag {tag!r}")


def describe(error: BaseException) -> dict[str, Any]:
    """Give the message that tells of an exception: its nearest builtin class and its text."""
    kind = next(
        (base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"), ""
    )
    try:
        text = str(error)[:200]
    except BaseException:  # of the program's own class
        text = ""
    return {"error": kind, "text": text}


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message. Raises WireError for one that is too long, OSError where nobody listens."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_BYTES:
        raise WireError(f"a message of {len(body)} bytes; {MAX_BYTES} are allowed")
    channel.sendall(HEADER.pack(len(body)) + body)


def receive(channel: socket.socket) -> dict[str, Any]:
    """Receive a message. Raises WireError for what is none, EOFError at the end, OSError."""
    (size,) = HEADER.unpack(_read(channel, HEADER.size))
    if size > MAX_BYTES:
        raise WireError(f"a message of {size} bytes; {MAX_BYTES} are allowed")
    try:
        message = json.loads(_read(channel, size))
    except (ValueError, RecursionError) as error:
        raise WireError(f"no message: {error}") from None
    if not isinstance(message, dict):
        raise WireError("a message is an object")
    return message


def _read(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the channel ended")
        parts += part
    return bytes(parts)
