"""The error of a request that the edge does not take."""

from typing import Any


class RefusedError(Exception):
    """The edge does not take a request.

    Attributes:
        code: a key of contract.ERROR_CODES.
        head: the request's message without its tensors' bytes; None if it is none.
        trace_headers: as in Inference.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.head: Any = None
        self.trace_headers: dict[str, str] = {}
