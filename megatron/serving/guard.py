"""Who may ask, and how much they may send: checks before any endpoint."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from megatron.errors import ConfigError
from megatron.option_field import require
from megatron.serving.error import RequestError
from megatron.serving.service import ClientGone
from megatron.serving.trace import trace_of

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MIN_KEY_CHARACTERS = 16
CLOSE = {"Connection": "close"}  # what the client still sends is not read


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Read a file of keys, one a line. Raises ConfigError."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file {path} is not ASCII; write a key a line") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    require(bool(keys), f"--api-key-file {path} holds no key; write one a line")
    for number, key in enumerate(keys, start=1):
        require(
            len(key) >= MIN_KEY_CHARACTERS and " " not in key,
            f"--api-key-file {path}: key {number} has {len(key)} characters; allowed: {MIN_KEY_CHARACTERS} or more, "
            f"no spaces, such as `openssl rand -hex 32` gives",
        )
    return tuple(key.encode() for key in keys)


class BrowserGuard:
    """Keeps web pages of others out, which a browser on this machine may show.

    A name that its owner points at this machine (DNS rebinding) shows in Host, a page of another place in Origin.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool) -> None:
        """is_local: only this machine can ask, by its own names."""
        self._app = app
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._obstacle(Headers(scope=scope))
            if error is not None:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _obstacle(self, headers: Headers) -> RequestError | None:
        host = headers.get("host", "")
        name = _host_name(f"//{host}")
        if self._is_local and name not in LOCAL_HOSTS:
            return RequestError(
                f"Host is {host[:80]!r}; allowed: {', '.join(LOCAL_HOSTS)}, this machine's own names",
                status=421,
                headers=CLOSE,
            )
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host:
            return RequestError("pages of other places may not ask here", status=403, headers=CLOSE)
        return None


class KeyGuard:
    """Asks for a key in `Authorization: Bearer`, and knows clients by it; where none is asked for, by what they send."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[bytes]) -> None:
        """keys: none: everybody may ask."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        secret = _bearer(Headers(scope=scope).get("authorization", ""))
        if self._keys:
            trace_of(scope).client = f"key {self._number(secret)}"
        elif secret:
            trace_of(scope).client = f"key {hashlib.sha256(secret).hexdigest()[:8]}"
        await self._app(scope, receive, send)

    def _number(self, secret: bytes) -> int:
        """Say the how-manieth key it is. Raises RequestError for one that is none."""
        # all of them: how long it takes says nothing about any
        matches = [hmac.compare_digest(secret, key) for key in self._keys]
        if not any(matches):
            raise RequestError(
                "the key is missing or wrong; send the header Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", **CLOSE},
            )
        return matches.index(True) + 1


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Read a body as it comes, and no more of it than allowed. Raises RequestError or ClientGone."""
    too_large = RequestError(
        f"the body has more than {max_bytes} bytes, the limit of this server; send several requests",
        status=413,
        headers=CLOSE,
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        message = f"the body did not come in {seconds:g} s, the limit of this server"
        raise RequestError(message, status=408, headers=CLOSE) from None
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(parts)


def error_response(error: RequestError) -> JSONResponse:
    """Give the answer that tells of an error."""
    return JSONResponse(error.to_json(), error.status, error.headers)


def _bearer(header: str) -> bytes:
    kind, _, secret = header.partition(" ")
    return secret.strip().encode() if kind.lower() == "bearer" else b""


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place(url: str) -> str | None:
    try:
        return urlsplit(url).netloc or None
    except ValueError:
        return None
