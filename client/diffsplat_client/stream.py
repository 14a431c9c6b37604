"""GenerationStream: the events of one request, from the first to Finished, and the way to stop it."""

import threading
from collections.abc import Callable, Iterator

import numpy as np

from diffsplat_client.contract import STATUS, STOP, STOP_ANSWER, STOP_ANSWERS, STOP_MODEL
from diffsplat_client.errors import DiffSplatError, RequestCancelledError, ServerError
from diffsplat_client.events import Event, Finished, event_of
from diffsplat_client.failures import early_end_error
from diffsplat_client.generation import Generation, parse_generation
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import Status, find_early_end, parse_status
from diffsplat_client.transport import ResponseStream, Tensors, Transport, TransportError

STOP_TIMEOUT_S = 1.0  # a stop is a courtesy to the server: nobody waits long for it


class GenerationStream:
    """Iterator of Queued, Progress and, at last, Finished. Made by `Client.stream`.

    Anything but Finished that ends it (close, Ctrl-C, the timeout, an error on this side) stops the request at the
    server too: cancelling a stream does not reach a running stage of an ensemble, so a STOP goes straight to it.
    """

    def __init__(
        self,
        transport: Transport,
        responses: ResponseStream,
        request: GenerationRequest,
        request_id: str,
        started: float,
        explain: Callable[[TransportError], DiffSplatError],
    ) -> None:
        """Follow `responses`; `started` is the monotonic time of the call, `explain` makes the typed errors."""
        self.request = request
        self.request_id = request_id
        self._transport = transport
        self._responses = responses
        self._started = started
        self._explain = explain
        self._tensors: Tensors = {}  # all that belongs to the result, from all responses so far
        self._last: Status | None = None  # the status "finished" or "ended"
        self._over = False  # the server no longer works on it, or has been asked to stop
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # threads that share a stream read one after the other

    def __enter__(self) -> "GenerationStream":
        """Stop the request at the end of the block if it has not finished."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the request if it has not finished."""
        self.close()

    def __del__(self) -> None:
        """A forgotten stream stops its request."""
        self.close()

    def __iter__(self) -> Iterator[Event]:
        """Is its own iterator."""
        return self

    def __next__(self) -> Event:
        """The next event; raises what `Client.generate` raises. Threads may share a stream: each event goes to one."""
        with self._reading:
            return self._next()

    def _next(self) -> Event:
        if self._over:
            raise StopIteration
        try:
            for tensors in self._responses:
                status = self._take(tensors)
                if status is not None and status.phase not in ("finished", "ended"):
                    return event_of(status)
            return Finished(self._result())
        except TransportError as error:
            # a stage that fails does not end the others: the denoiser may still be at work
            self._end(stop=error.code not in ("UNAVAILABLE", "INVALID_ARGUMENT", "CANCELLED"))
            raise self._explain(error) from None
        except BaseException:
            self._end(stop=True)
            raise

    def close(self) -> None:
        """Stop the request unless it is over; from any thread. A blocked reader gets RequestCancelledError."""
        self._end(stop=True)

    def stop(self) -> str:
        """The same, and what the server says to it, as in `Client.stop`; "already_finished" also once it is over here.

        Raises:
            ServerError, ServerUnavailableError: no answer; the request ends at its own deadline.
        """
        answer = self._end(stop=True)
        if isinstance(answer, TransportError):
            raise self._explain(answer)
        return answer

    def _take(self, tensors: Tensors) -> Status | None:
        """Keep what belongs to the result; the status, if the response has one.

        Triton numbers the outputs of an ensemble's stages as they arrive, so a stage that overtakes its own answer to
        an earlier progress message finds its tensors in that message's response: only the names can be trusted.
        """
        self._tensors |= {name: tensor for name, tensor in tensors.items() if name != STATUS.name}
        if STATUS.name not in tensors:
            return None
        status = parse_status(tensors[STATUS.name])
        if status.phase in ("finished", "ended"):
            self._last = status
        return status

    def _result(self) -> Generation:
        """The server has closed the stream: everything it had is here."""
        if self._over:  # another thread was quicker
            raise RequestCancelledError("the request was stopped")
        if self._last is None:
            raise ServerError("the server closed the stream without a result")
        if (end := self._last.early_end or find_early_end(self._tensors)) is not None:
            self._over = True  # nothing is left to stop
            raise self._explain(early_end_error(end))
        result = parse_generation(self._tensors, self.request, self.request_id, self._last, self._started)
        self._over = True
        return result

    def _end(self, *, stop: bool) -> str | TransportError:
        """What the server says to a STOP, or why it says nothing: gone or busy, the request ends at its deadline."""
        with self._lock:
            if self._over:
                return "already_finished"
            self._over = True
        # cancel first, so that a request that is still on its way to the denoiser does not arrive after its STOP
        self._responses.cancel()
        try:
            return send_stop(self._transport, self.request_id, STOP_TIMEOUT_S) if stop else "already_finished"
        except TransportError as error:
            return error


def send_stop(transport: Transport, request_id: str, timeout_s: float) -> str:
    """One of contract.STOP_ANSWERS; TransportError when there is no answer.

    To every version that is loaded: while a server changes over, the older one still works on requests.
    """
    answers = set()
    for version in transport.versions(STOP_MODEL, timeout_s):
        for tensors in transport.stream(STOP_MODEL, {STOP.name: np.ones(1, np.bool_)}, request_id, timeout_s, version):
            if STOP_ANSWER.name in tensors:  # read to the end: an unread stream would be cancelled
                answers.add(tensors[STOP_ANSWER.name].item().decode(errors="replace"))
    known = [answer for answer in STOP_ANSWERS if answer in answers]  # the first one says most
    if not known:
        raise TransportError("INTERNAL", "the server did not say what became of the request")
    return known[0]
