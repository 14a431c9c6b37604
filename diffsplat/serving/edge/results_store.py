"""Answers that outlive their reader: recorded on disk, bounded in bytes and time, read by anybody who knows the id.

A recording is an anonymous file: it has no name that another user could open, and it is gone with the process.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from diffsplat.serving.edge.changes import Changes

RUNNING = "running"  # state of a request that has not ended
Key = tuple[str, str]  # name of a client, id that it gave its request


@dataclass(frozen=True)
class KeepPolicy:
    """What is kept of requests that have finished.

    Attributes:
        max_bytes: of all results together; the oldest go first.
        max_results: likewise; each is an open file.
        keep_s: how long after its end.
    """

    max_bytes: int = 2**30
    max_results: int = 256
    keep_s: float = 600.0


class Recording:
    """The messages of one request: all that belong to its result, and the newest that does not.

    Attributes:
        digest: of the request that it answers.
        readers: how many read it now.
        on_idle: called when the last of them leaves.
        size: bytes of the result.
        status: content of the newest STATUS, empty before the first.
        preview: the newest message with a PREVIEW while the request runs, empty without one.
        end_state, error_type, error: as of the job that it records.
    """

    def __init__(self, digest: bytes, file: IO[bytes]) -> None:
        self.digest = digest
        self.readers = 0
        self.on_idle: Callable[[], None] = lambda: None
        self.size = 0
        self.status: dict[str, Any] = {}
        self.preview = b""
        self.end_state, self.error_type, self.error = RUNNING, "", ""
        self._file = file
        self._spans: list[tuple[int, int]] = []  # of the messages in the file: offset and length
        self._passing, self._passed = b"", 0  # the newest message that is not kept, and how many there were
        self._changes = Changes()

    @property
    def ended(self) -> bool:
        """Whether all of it is here."""
        return self.end_state != RUNNING

    @property
    def of_use(self) -> bool:
        """Whether the request need not be computed again: what was cancelled or failed may be."""
        return self.end_state in (RUNNING, "finished")

    async def put(self, message: bytes, *, passing: bool, status: dict[str, Any] | None = None) -> None:
        """One more message, and the STATUS in it; a passing one only matters until the next one."""
        if not passing:
            await asyncio.to_thread(self._write, message)
        self.status = status or self.status
        if passing:
            self._passing, self._passed = message, self._passed + 1
        else:
            self._spans.append((self.size, len(message)))
            self.size += len(message)
        self._changes.notify()

    def end(self, end_state: str, error_type: str = "", error: str = "") -> None:
        """That was all."""
        self.end_state, self.error_type, self.error = end_state, error_type, error
        self.preview = b""
        self._changes.notify()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """From the newest passing message, or all that is kept, to the end; for any number of readers at any time."""
        index = passed = 0
        while True:
            await self._changes.wait_for(partial(self._has_more, index, passed))
            if index < len(self._spans):
                offset, length = self._spans[index]
                index, passed = index + 1, self._passed  # what passed before a result is old news
                yield await asyncio.to_thread(os.pread, self._file.fileno(), length, offset)
            elif passed < self._passed:
                passed = self._passed
                yield self._passing
            else:
                return

    def enter(self) -> None:
        """One more reader has come."""
        self.readers += 1

    def leave(self) -> None:
        """A reader has left."""
        self.readers -= 1
        if not self.readers:
            self.on_idle()

    def discard(self) -> None:
        """Give the disk back; who reads it still may read on."""
        if not self.readers:
            self._file.close()
        else:
            self.on_idle = self._file.close

    def _has_more(self, index: int, passed: int) -> bool:
        return index < len(self._spans) or passed < self._passed or self.ended

    def _write(self, message: bytes) -> None:
        view, offset = memoryview(message), self.size
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written


class ResultStore:
    """Recordings by client and id, the oldest first."""

    def __init__(self, policy: KeepPolicy) -> None:
        self.policy = policy
        self._recordings: dict[Key, Recording] = {}
        self._ended: dict[Key, Recording] = {}  # in the order of their ends

    def find(self, key: Key) -> Recording | None:
        """The recording of a running request, or of one whose result is kept."""
        return self._recordings.get(key)

    def begin(self, key: Key, digest: bytes) -> Recording:
        """Record the answers to a request, in place of an earlier one that is of no use."""
        if (earlier := self._recordings.get(key)) is not None:
            assert earlier.ended
            self._drop(key, earlier)
        recording = Recording(digest, tempfile.TemporaryFile(prefix="diffsplat-edge-"))
        self._recordings[key] = recording
        return recording

    def end(self, key: Key) -> None:
        """A request has ended; its recording is kept for a while."""
        recording = self._recordings[key]
        self._ended[key] = recording
        asyncio.get_running_loop().call_later(self.policy.keep_s, self._drop, key, recording)
        while len(self._ended) > self.policy.max_results or self.kept_bytes > self.policy.max_bytes:
            self._drop(*next(iter(self._ended.items())))

    def close(self) -> None:
        """Keep nothing any more."""
        for key, recording in list(self._recordings.items()):
            self._drop(key, recording)

    @property
    def kept(self) -> int:
        """Results that are kept."""
        return len(self._ended)

    @property
    def kept_bytes(self) -> int:
        """Bytes of these."""
        return sum(recording.size for recording in self._ended.values())

    def _drop(self, key: Key, recording: Recording) -> None:
        if self._recordings.get(key) is recording:
            del self._recordings[key]
            self._ended.pop(key, None)
            recording.discard()
