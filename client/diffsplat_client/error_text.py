"""The text of an error response of a stage: `TYPE: message`, and at its end what a client may read by machine."""

import re
from typing import NamedTuple

from diffsplat_client.contract import ERROR_CODES

_TEXT = re.compile(
    rf"(?:in ensemble '[^']*', )?({'|'.join(ERROR_CODES)}): (.*?)(?: \[retry_after_s=([0-9.]+)\])?", re.DOTALL
)


class StageError(NamedTuple):
    """What a stage says of a request that it refuses."""

    error_type: str  # a key of contract.ERROR_CODES
    message: str
    retry_after_s: float | None = None  # when it may find room, for OVERLOADED

    def to_text(self) -> str:
        """The text of the response."""
        hint = "" if self.retry_after_s is None else f" [retry_after_s={self.retry_after_s:.1f}]"
        return f"{self.error_type}: {self.message}{hint}"

    @classmethod
    def from_text(cls, text: str) -> "StageError | None":
        """Inverse of `to_text`, also of what an ensemble makes of it; None for a text that is not a stage's."""
        if (match := _TEXT.fullmatch(text)) is None:
            return None
        return cls(match[1], match[2], None if match[3] is None else float(match[3]))
