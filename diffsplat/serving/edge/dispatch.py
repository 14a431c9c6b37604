"""Starts requests, finds those that run or are kept, and stops them: for every protocol that clients speak."""

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from diffsplat_client.contract import CANCEL, ENSEMBLE

from diffsplat.serving.edge.admission import Inference, RefusedError, admit
from diffsplat.serving.edge.clients import Client, Clients
from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.edge.outbox import Outbox
from diffsplat.serving.edge.results_store import Recording, ResultStore
from diffsplat.serving.edge.upstream import ServerRuns, Upstream
from diffsplat.serving.engine.jobs import ENDED_KEPT_S, MAX_ENDED, RecentIds


class Answers:
    """The answers to one request, for one reader. It must call `leave`, however it ends.

    Args:
        messages: as bytes.
        client: whose they are.
        leave: what is to be done when the reader leaves.
    """

    def __init__(self, messages: AsyncIterator[bytes], client: Client, leave: Callable[[], None]) -> None:
        self._messages, self._client, self._leave = messages, client, leave
        self._left = False
        client.unread_answers += 1

    def __aiter__(self) -> AsyncIterator[bytes]:
        """May be iterated once."""
        return self._messages

    def leave(self) -> None:
        """The reader has read all, or reads no more. May be called twice."""
        if not self._left:
            self._left = True
            self._client.unread_answers -= 1
            self._leave()


class RequestObserver(Protocol):
    """Told of every request, when it ends or is refused."""

    def ended(self, client: str, job: Job) -> None:
        """A request has ended."""

    def refused(self, client: str, error: RefusedError) -> None:
        """A request was not taken."""


class Dispatcher:
    """Requests of all clients.

    Args:
        upstream, runs: the Triton behind the edge.
        clients: what is running for whom.
        store: answers that outlive their readers.
        observers: of requests.

    Attributes:
        draining: no new requests are taken.
    """

    def __init__(
        self,
        upstream: Upstream,
        runs: ServerRuns,
        clients: Clients,
        store: ResultStore,
        observers: Sequence[RequestObserver],
    ) -> None:
        self.draining = False
        self._upstream, self._runs, self._clients, self._store = upstream, runs, clients, store
        self._observers = observers
        self._ended = RecentIds(time.monotonic, ENDED_KEPT_S, MAX_ENDED)

    @property
    def ready(self) -> bool:
        """Whether generations are taken and computed now."""
        return self.ready_for(ENSEMBLE)

    def ready_for(self, model: str) -> bool:
        """Whether requests to a model are taken and computed now."""
        return self._runs.run_of(model) is not None and not self.draining

    def admit(self, client: Client, message: bytes, trace_headers: dict[str, str]) -> Inference:
        """Check a `ModelInferRequest`. RefusedError says what is wrong with it."""
        try:
            return dataclasses.replace(admit(message), trace_headers=trace_headers)
        except RefusedError as error:
            error.trace_headers = trace_headers
            self._note_refusal(client, error)
            raise

    def ask(self, client: Client, inference: Inference) -> Answers:
        """The answers to a request, which is started unless it runs or is kept. RefusedError if it is not taken."""
        try:
            if inference.on_disconnect is None:
                return self._ask_once(client, inference)
            return read_recording(client, self._find_or_start(client, inference))
        except RefusedError as error:
            raise self._refused(client, inference, error) from None

    def record(self, client: Client, inference: Inference) -> Recording:
        """The recording of a request whose id lasts, without a reader; otherwise as `ask`."""
        try:
            return self._find_or_start(client, inference)
        except RefusedError as error:
            raise self._refused(client, inference, error) from None

    def find(self, client: Client, client_id: str) -> Recording | None:
        """The recording of a request that runs, or that has ended not long ago."""
        return self._store.find((client.name, client_id))

    def stop(self, client: Client, client_id: str) -> str:
        """Stop the running requests of this id; one of contract.STOP_ANSWERS."""
        jobs = [job for job in client.jobs if job.inference.client_id == client_id]
        for job in jobs:
            job.stop()
        if jobs:
            return "requested"
        return "already_finished" if self._ended.has(_own_id(client, client_id)) else "not_found"

    def _note_end(self, client: Client, job: Job) -> None:
        self._ended.note(_own_id(client, job.inference.client_id))
        for observer in self._observers:
            observer.ended(client.name, job)

    def _note_refusal(self, client: Client, error: RefusedError) -> None:
        for observer in self._observers:
            observer.refused(client.name, error)

    def _ask_once(self, client: Client, inference: Inference) -> Answers:
        job, outbox = self._make_job(client, inference), Outbox(client.unread)
        job.attach(outbox)
        self._clients.start(client, job, lambda: self._note_end(client, job))

        def leave() -> None:
            job.detach(outbox)
            outbox.close()

        return Answers(outbox, client, leave)

    def _find_or_start(self, client: Client, inference: Inference) -> Recording:
        """Never computed twice: the recording of the same request, if there is one."""
        key = (client.name, inference.client_id)
        recording = self._store.find(key)
        if recording is not None and (recording.of_use or inference.attaches):
            if not inference.attaches and recording.digest != inference.digest:
                raise RefusedError("INVALID_ARG", "another request has this id already: choose a new one")
            return recording
        if inference.attaches:
            raise RefusedError("NOT_FOUND", "no request of this id is running, and no result of it is kept")
        job = self._make_job(client, inference)
        recording = self._store.begin(key, inference.digest)
        job.record(recording)
        if inference.on_disconnect == CANCEL:
            recording.on_idle = job.stop

        def ended() -> None:
            self._note_end(client, job)
            self._store.end(key)

        self._clients.start(client, job, ended)
        return recording

    def _refused(self, client: Client, inference: Inference, error: RefusedError) -> RefusedError:
        error.head, error.trace_headers = inference.request.head, inference.trace_headers
        self._note_refusal(client, error)
        return error

    def _make_job(self, client: Client, inference: Inference) -> Job:
        if self.draining:
            raise RefusedError("UNAVAILABLE", "the server is shutting down and takes no new requests")
        client.check_room(inference.places)
        return Job(inference, self._upstream, self._runs)


def _own_id(client: Client, client_id: str) -> str:
    """An id that no other client has; empty for a request without one. Ids have no line breaks."""
    return client_id and f"{client_id}\n{client.name}"


def read_recording(client: Client, recording: Recording) -> Answers:
    """What is recorded and still comes, for one more reader."""
    recording.enter()
    return Answers(recording.read(), client, recording.leave)
