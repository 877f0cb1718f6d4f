"""What a client is told when a request cannot be answered, in the form of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.errors import MegatronError

KINDS = {429: "rate_limit_error", 408: "timeout_error"}


class RequestError(MegatronError):
    """A request that is refused or failed. The message says what was given, what is allowed, what to do."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """Give the body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": str(self),
            "type": KINDS.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}
