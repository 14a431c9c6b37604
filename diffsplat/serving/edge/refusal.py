"""The error of a request that the edge does not take."""

from typing import Any


class RefusedError(Exception):
    """The edge does not take a request: `code` is a key of contract.ERROR_CODES, `head` its message, if it is one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.head: Any = None
