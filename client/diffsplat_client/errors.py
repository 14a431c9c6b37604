"""Every exception the client raises.

DiffSplatError
├── InvalidRequestError   (also a ValueError) an option is out of range, or the server refused the input
├── AuthenticationError     the server does not know the token, or wants one
├── RequestNotFoundError    nothing goes by the id of a submitted request, or not any more
├── ServerUnavailableError  nothing listens at the address, or the connection broke
├── ServerError             the server failed while working on a valid request
├── ContractMismatchError   client and server speak different contract versions
├── RequestCancelledError   the request was stopped
└── RequestTimeoutError     (also a TimeoutError) `timeout_s` passed
"""


class DiffSplatError(Exception):
    """Base of all errors raised by this package.

    Attributes:
        error_type: what programs read: a key of `contract.ERROR_CODES`, UNAUTHENTICATED or CONTRACT_MISMATCH.
            OVERLOADED: the server has no room for the request now.
        retry_after_s: seconds after which an OVERLOADED server expects to have room; None: it does not know.
        end_state: how a request ended that the denoiser had accepted, one of `contract.EARLY_END_STATES`; else None.
    """

    error_type = "INTERNAL"
    retry_after_s: float | None = None
    end_state: str | None = None


class InvalidRequestError(DiffSplatError, ValueError):
    """A field of the request is missing, of the wrong type, or out of range; the message names field, value, range."""

    error_type = "INVALID_ARG"


class AuthenticationError(DiffSplatError):
    """The server does not know the client's token, or wants one and got none."""

    error_type = "UNAUTHENTICATED"


class RequestNotFoundError(DiffSplatError):
    """The server has no request of this id: it never got one, it stopped or failed, or the result is no longer kept."""

    error_type = "NOT_FOUND"


class ServerUnavailableError(DiffSplatError):
    """No server answers at the address, it is not ready, or it went away during the request."""

    error_type = "UNAVAILABLE"


class ServerError(DiffSplatError):
    """The server accepted the request and failed to finish it."""


class ContractMismatchError(DiffSplatError):
    """The server speaks another contract version than this client; install matching releases."""

    error_type = "CONTRACT_MISMATCH"


class RequestCancelledError(DiffSplatError):
    """The request was cancelled before it finished."""

    error_type = "CANCELLED"


class RequestTimeoutError(DiffSplatError, TimeoutError):
    """The request did not finish within `timeout_s` seconds."""

    error_type = "DEADLINE_EXCEEDED"
