"""Log records that stay one line, whatever text of a request they hold."""

import logging
import sys


class LineFormatter(logging.Formatter):
    """Escapes control characters, and indents tracebacks, so that no text of a request can pass for a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's first line."""
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # type: ignore[name-defined]
        """The traceback, whose last lines hold the error's own text."""
        return "\n".join(f"    {escape(line)}" for line in super().formatException(ei).splitlines())


def escape(text: str) -> str:
    """Text without line breaks and other characters that cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def log_to_stderr() -> None:
    """Where the logs of a model's process go."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
