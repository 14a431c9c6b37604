"""Errors of several folders of serving: the server cannot start, or has no room for a request now."""


class ServerStartError(RuntimeError):
    """The server could not be started, or died while starting; the message says why and quotes the log."""


class OverloadedError(RuntimeError):
    """No room for another request now; the message names the limit."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: seconds after which there probably is room; None: nobody knows."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
