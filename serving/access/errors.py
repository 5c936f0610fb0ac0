"""What a client is told when a request is refused: OpenAI's error object with one sentence of ours."""

from __future__ import annotations

from typing import Any

from flexo.errors import InputError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
         413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}  # fmt: skip


class RequestError(InputError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: what, where, expected, got, and what to do.
        param: the field of the body.
        code: a word for programs.
        wait: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.wait = status, param, code, wait

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.wait)} if self.wait is not None else {}


def unavailable(why: str) -> RequestError:
    return RequestError(503, f"{why} Try again in a moment.", code="unavailable", wait=5)
