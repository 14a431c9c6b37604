"""The log of requests: one line of JSON for each, when it ends or is refused."""

import json
import logging
import logging.handlers
import time
from pathlib import Path
from typing import Any

from diffsplat.serving.edge.admission import RefusedError
from diffsplat.serving.edge.jobs import Job

MAX_BYTES, KEPT_FILES = 50 * 2**20, 5
MAX_ERROR_CHARACTERS = 300


class RequestLog:
    """Writes to a file, which is rotated at 50 MB; the last five are kept.

    Args:
        path: the file; None writes nothing.
        prompts: whether prompts are logged too.
    """

    def __init__(self, path: Path | None, prompts: bool = False) -> None:
        self._prompts = prompts
        self._file: logging.Handler = logging.NullHandler()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES)

    def ended(self, client: str, job: Job) -> None:
        """A request has ended."""
        line = {
            "request": job.inference.client_id,
            "id": job.request_id,  # as in Triton's and the stages' logs
            "client": client,
            "model": job.inference.model,
            "end_state": job.end_state,
            "seconds": round(job.seconds, 4),
            "seconds_to_first_answer": None if job.first_answer_s is None else round(job.first_answer_s, 4),
            "answer_bytes": job.answer_bytes,
            "runs": job.runs_begun,
            "stages_ms": job.stages.stages_ms,
        }
        if job.trace_id:
            line["trace_id"] = job.trace_id
        if job.error_type:
            line |= self._describe(job.error_type, job.error)
        if self._prompts:
            line["prompt"] = job.inference.text("PROMPT")
        self._write(line)

    def refused(self, client: str, error: RefusedError) -> None:
        """A request was not taken."""
        head = error.head
        about = {} if head is None else {"request": head.id, "model": head.model_name}
        self._write({**about, "client": client, "end_state": "refused", **self._describe(error.code, str(error))})

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _describe(self, error_type: str, error: str) -> dict[str, str]:
        told = tell_error(error_type, error, self._prompts)
        return {"error_type": error_type, **({"error": told} if told else {})}

    def _write(self, line: dict[str, Any]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = json.dumps({"time": stamp, **line})
        self._file.emit(logging.LogRecord("requests", logging.INFO, "", 0, text, None, None))


def tell_error(error_type: str, error: str, prompts: bool) -> str:
    """The message, cut; empty where it may quote a prompt, as messages about bad values do, and `prompts` is false."""
    return error[:MAX_ERROR_CHARACTERS] if error_type != "INVALID_ARG" or prompts else ""
