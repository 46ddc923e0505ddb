"""Errors in OpenAI's form: `{"error": {message, type, param, code}}`."""

from typing import Any

from starlette.responses import JSONResponse

from vococache.errors import (
    ContextLimitError,
    CorruptionError,
    InputError,
    StoreError,
    VideoChangedError,
    VideoNotFoundError,
)
from vococache.pipeline.serve.engine import BusyError

# The first that fits: status, type, code.
KINDS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (BusyError, 429, "rate_limit_error", "too_many_waiting"),
    (ContextLimitError, 400, "invalid_request_error", "context_length_exceeded"),
    (InputError, 400, "invalid_request_error", "invalid_request"),
    (VideoNotFoundError, 404, "invalid_request_error", "video_not_found"),
    (VideoChangedError, 409, "invalid_request_error", "video_changed"),
    (CorruptionError, 500, "server_error", "video_damaged"),
    (StoreError, 503, "server_error", "store_unreachable"),
)


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, kind: str, code: str, param: str | None = None) -> JSONResponse:
    """A whole response."""
    return JSONResponse(error_body(message, kind, code, param), status)


def described(error: Exception, url: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error of ours; of any other no more than that there was one.

    `url`: of the store, which clients are not told: where it lies is no business of theirs.
    """
    for kind, status, name, code in KINDS:
        if isinstance(error, kind):
            return status, error_body(str(error).replace(url, url.rstrip("/").rpartition("/")[2]), name, code)
    return 500, error_body("the service failed; its log says why", "server_error", "internal_error")
