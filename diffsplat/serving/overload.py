"""OverloadedError: no room for another request now."""


class OverloadedError(RuntimeError):
    """No room for another request now; the message names the limit."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: seconds after which there probably is room; None: nobody knows."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
