"""Job: one request on its way through Triton, from its arrival to the last byte of its answer.

    client --> Job --> Triton            messages: Triton --> Job --> Outbox of every reader --> client

A job survives Triton: what has not been answered when the server dies, or one of the stages that it needs, is sent to
the next run of it, under another id. It ends with Triton's stream.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from diffsplat_client.contract import PREVIEW, STATUS

from diffsplat.serving.edge.admission import Inference, RefusedError
from diffsplat.serving.edge.failures import end_in, end_of, refusal, server_fault
from diffsplat.serving.edge.outbox import Outbox
from diffsplat.serving.edge.progress import SeenAnswers, is_passing
from diffsplat.serving.edge.results_store import RUNNING, Recording
from diffsplat.serving.edge.sending import Sending
from diffsplat.serving.edge.stage_reports import StageReports
from diffsplat.serving.edge.upstream import ServerRuns, Upstream
from diffsplat.serving.edge.wire import Response

MAX_RUNS = 3  # a request that was there whenever the server died is perhaps why it died
RESTART_LIMIT_S = 300.0  # how long a request waits for a server
FAULT_PATIENCE_S = 10.0  # a supervisor that has not begun a restart by then has found nothing wrong
STOP_LIMIT_S = 5.0  # for one STOP
STOP_AGAIN_S = 1.0  # a STOP that comes before its request is forgotten after a while
_POLL_S = 0.05
_RUN_POLL_S = 0.25  # how often a request that runs looks whether its stages still do
_log = logging.getLogger(__name__)
_MAY_RUN_ON = ("INTERNAL", "DEADLINE_EXCEEDED")  # errors of one stage of an ensemble, which do not end the denoiser


class Sent(NamedTuple):
    """A request was sent to Triton: when, on the clock of its job, and why once more, empty the first time."""

    at_s: float
    why: str


class Job:
    """One request. `run` works on it; readers get its messages through outboxes.

    Args:
        inference: what is asked.
        upstream, runs: the Triton that computes it.
        clock: seconds, monotonic.

    Attributes:
        request_id: its id at Triton, which nobody can guess; every run has another one.
        arrived_s: when, on the clock.
        runs_begun: how often it was to be sent to Triton.
        sent: how often it was.
        end_state: "running", then "finished", "cancelled", "expired" or "failed".
        error_type, error: why it did not finish: a key of contract.ERROR_CODES, and the message.
        first_answer_s, seconds: from its arrival to its first answer (None: there was none), and to its end or now.
        answer_bytes: of all answers.
        stages: what the answers tell of its stages.
        trace_id: of its trace, once it has ended; empty if it is not recorded.
    """

    def __init__(
        self,
        inference: Inference,
        upstream: Upstream,
        runs: ServerRuns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inference = inference
        self.request_id = secrets.token_hex(16)
        self.runs_begun = 0
        self.sent: list[Sent] = []
        self.end_state, self.error_type, self.error = RUNNING, "", ""
        self.first_answer_s: float | None = None
        self.answer_bytes = 0
        self.stages = StageReports()
        self.trace_id = ""
        self._ended_s: float | None = None
        self._upstream, self._runs, self._clock = upstream, runs, clock
        self.arrived_s = clock()
        self._readers: list[Outbox] = []
        self._recording: Recording | None = None
        self._seen = SeenAnswers()
        self._stopping: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    @property
    def seconds(self) -> float:
        """From its arrival to its end, or until now."""
        return (self._clock() if self._ended_s is None else self._ended_s) - self.arrived_s

    def attach(self, reader: Outbox) -> None:
        """Give the messages that come from now on to a reader."""
        self._readers.append(reader)

    def detach(self, reader: Outbox) -> None:
        """A reader has left; when it was the last one, the request is stopped."""
        if reader in self._readers:
            self._readers.remove(reader)
        if not self._readers:
            self.stop()

    def record(self, recording: Recording) -> None:
        """Give the messages to a recording, which others read."""
        self._recording = recording

    def stop(self) -> None:
        """Let the denoiser stop it at its next step. Readers get what Triton says then."""
        if self._stopping is None and not self._over.is_set():
            self._stopping = asyncio.create_task(self._keep_stopping())

    async def run(self) -> None:
        """Send it to Triton, as often as need be, and pass on the answers. Ends when the last reader has its last."""
        try:
            await self._run()
        except RefusedError as error:
            await self._publish(self._refusal(error))
        except Exception:  # such as an answer that is none: the client must not wait for ever
            _log.exception("request %s failed in the edge", self.request_id)
            await self._publish(self._refusal(RefusedError("INTERNAL", "the edge failed; the server's log says why")))
        finally:
            if self.end_state == RUNNING:
                self.end_state, self.error_type, self.error = "failed", "UNAVAILABLE", "the edge was closed"
            self._ended_s = self._clock()
            for reader in self._readers:
                reader.end()
            if self._recording is not None:
                self._recording.end(self.end_state, self.error_type, self.error)
            await self._end_stopping()

    async def _run(self) -> None:
        failed_run, fault = None, ""
        for self.runs_begun in range(1, MAX_RUNS + 1):
            run = await self._next_run(failed_run)
            fault = await self._follow(self._send(fault), run)
            if not fault:
                if self.error_type in _MAY_RUN_ON:
                    self.stop()
                if self.end_state == RUNNING:
                    self.end_state = "finished"
                return
            if not self.inference.repeatable:
                raise RefusedError("UNAVAILABLE", fault)
            self._seen.begin_again()
            failed_run = run
        raise RefusedError("UNAVAILABLE", f"the server failed {MAX_RUNS} times while it worked on the request: {fault}")

    async def _next_run(self, failed_run: int | None) -> int:
        """Wait for a run of the server other than the one that failed; the same one will do if it goes on."""
        began_s = self._clock()
        while True:
            now_s = self._clock()
            if self._stopping is not None:
                raise RefusedError("CANCELLED", "the request was cancelled")
            if now_s - self.arrived_s >= self.inference.end_after_s:
                raise RefusedError("DEADLINE_EXCEEDED", "deadline_s passed while the request waited for the server")
            run = self._runs.run_of(self.inference.model)
            if run is not None and (run != failed_run or now_s - began_s >= FAULT_PATIENCE_S):
                return run
            if now_s - began_s >= RESTART_LIMIT_S:
                raise RefusedError("UNAVAILABLE", f"no server came back within {RESTART_LIMIT_S:g} s")
            await asyncio.sleep(_POLL_S)

    def _send(self, why: str) -> Sending:
        now_s, elapsed_s = self._clock(), 0.0
        if self.runs_begun > 1:
            self.request_id, elapsed_s = secrets.token_hex(16), now_s - self.arrived_s
        self.sent.append(Sent(now_s, why))
        return Sending(
            self.request_id,
            self.inference.message(self.request_id, elapsed_s),
            self._upstream,
            find_fault=server_fault if self.inference.repeatable else lambda response: "",  # of a probe
            take=self._take,
        )

    async def _follow(self, sending: Sending, run: int) -> str:
        """Pass on the answers of one sending. Why the server failed meanwhile; empty if it did not."""
        try:
            while not await sending.ended_within(_RUN_POLL_S):
                if self._runs.run_of(self.inference.model) not in (run, None):
                    await sending.give_up("a stage of it was loaded anew")
                    break
        except BaseException:
            sending.cancel()
            raise
        if sending.fault:
            sending.stop()  # the denoiser may have outlived another stage
        return sending.fault

    async def _take(self, response: Response) -> None:
        if (new := self._seen.take(response)) is not None:
            self.stages.note(new, self.runs_begun, self._clock())
            if (end := end_in(new)) is not None:
                self.end_state, self.error_type, self.error = end
            await self._publish(new)

    async def _publish(self, response: Response) -> None:
        if not self._readers and self._recording is None:
            return
        response.head.id = self.inference.client_id
        response.error = response.error.replace(self.request_id, self.inference.client_id)
        message = response.to_bytes()
        self.answer_bytes += len(message)
        if self.first_answer_s is None:
            self.first_answer_s = self._clock() - self.arrived_s
        for reader in list(self._readers):
            await reader.put(message)
        if self._recording is not None:
            status = response.read_json(STATUS.name)
            if PREVIEW.name in response.names:
                self._recording.preview = message
            await self._recording.put(message, passing=is_passing(response), status=status)

    def _refusal(self, error: RefusedError) -> Response:
        """An error of the edge's own, as Triton would send it."""
        self.end_state, self.error_type, self.error = end_of(error.code, str(error))
        error.head = self.inference.request.head
        return refusal(error)

    async def _keep_stopping(self) -> None:
        while True:
            await self._upstream.stop(self.request_id)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), STOP_AGAIN_S)
                return

    async def _end_stopping(self) -> None:
        """A STOP on its way is let through: it is a request to Triton too, which should not be cancelled."""
        self._over.set()
        if self._stopping is not None:
            _, late = await asyncio.wait([self._stopping], timeout=STOP_LIMIT_S)
            for task in late:
                task.cancel()
