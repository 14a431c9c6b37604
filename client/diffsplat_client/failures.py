"""Turns failures of the transport into the typed errors of the client."""

import re

from diffsplat_client.connection import TOKEN_VARIABLE, Connection
from diffsplat_client.contract import ENSEMBLE, ERROR_CODES
from diffsplat_client.errors import (
    AuthenticationError,
    DiffSplatError,
    InvalidRequestError,
    RequestCancelledError,
    RequestNotFoundError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
)
from diffsplat_client.status import EarlyEnd
from diffsplat_client.transport import FORKED, TransportError


def connection_error(error: TransportError, connection: Connection, timeout_s: float) -> DiffSplatError:
    """For one of the questions before a request, which had `timeout_s` to be answered."""
    url, proxy = connection.url, connection.proxy()
    through = "" if proxy is None else f" through the proxy {proxy}"
    if error.code == FORKED:
        return ServerUnavailableError(error.message)
    if error.code == "DEADLINE_EXCEEDED":
        return ServerUnavailableError(f"no answer from {url}{through} within {timeout_s:g} s")
    if error.code == "NOT_FOUND" or "unknown model" in error.message:
        return ServerUnavailableError(f"the server at {url} does not serve the model {ENSEMBLE!r}")
    if error.code == "UNAUTHENTICATED":
        if connection.token is None:
            return AuthenticationError(f"the server at {url} wants a token: pass token=..., or set {TOKEN_VARIABLE}")
        return AuthenticationError(f"the server at {url} does not know this token")
    if error.code == "CANCELLED":
        return RequestCancelledError("the client was closed before the request was sent")
    if error.code == "UNAVAILABLE":
        return ServerUnavailableError(f"no server answers at {url}{through} ({_first_line(error.message)})")
    return ServerError(f"{url}{through} answers, but not as a Triton server does ({_first_line(str(error))})")


def early_end_error(end: EarlyEnd) -> TransportError:
    """The failure of a request that a stage ended early."""
    return TransportError(
        ERROR_CODES[end.error_type], end.message, True, error_type=end.error_type, end_state=end.state
    )


def request_error(error: TransportError, connection: Connection, timeout_s: float) -> DiffSplatError:
    """For a request, which had `timeout_s` in all; with all that its stage said for programs."""
    typed = _typed_error(error, connection, timeout_s)
    typed.error_type = error.error_type or typed.error_type
    typed.retry_after_s, typed.end_state = error.retry_after_s, error.end_state
    return typed


def _typed_error(error: TransportError, connection: Connection, timeout_s: float) -> DiffSplatError:
    if error.error_type == "OVERLOADED":
        hint = "" if error.retry_after_s is None else f"; it expects room in {error.retry_after_s:g} s"
        why = f"{_first_line(error.message)}{hint}"
        return ServerUnavailableError(f"the server at {connection.url} is overloaded ({why})")
    match error.code:
        case "FORKED" | "UNAUTHENTICATED":
            return connection_error(error, connection, timeout_s)
        case "INVALID_ARGUMENT":
            return InvalidRequestError(re.sub(r"^in ensemble '\w+', ", "", error.message))
        case "RESOURCE_EXHAUSTED" if "larger than max" in error.message:  # gRPC's words
            return InvalidRequestError(f"the request is larger than the server takes ({_first_line(error.message)})")
        case "UNAVAILABLE":
            return ServerUnavailableError(
                f"the server at {connection.url} went away or takes no requests ({_first_line(error.message)})"
            )
        case "NOT_FOUND":
            return RequestNotFoundError(_first_line(error.message))
        case "CANCELLED":
            return RequestCancelledError("the request was stopped")
        case "DEADLINE_EXCEEDED":
            why = _first_line(error.message)  # a deadline of the request's own may have been shorter
            return RequestTimeoutError(
                f"not finished within timeout_s = {timeout_s:g}: the request was stopped ({why})"
            )
    return ServerError(f"the server failed ({_first_line(str(error))})")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"
