"""GenerationHandle: a request that the server finishes whoever leaves, found again by its id."""

import dataclasses
from collections.abc import Callable

from diffsplat_client.contract import FRAMES, STATUS
from diffsplat_client.events import Finished
from diffsplat_client.formats import RAW
from diffsplat_client.generation import Generation, read_assets
from diffsplat_client.status import Status, parse_status
from diffsplat_client.stream import STOP_TIMEOUT_S, GenerationStream, send_stop
from diffsplat_client.transport import TransportError


class KeptStream(GenerationStream):
    """The events of a request that goes on when its reader leaves. Made by `GenerationHandle.events`."""

    knows_request = True  # else `request` says only what the result shows

    def first_status(self) -> Status | None:
        """Where the request stands, and leave; None when the first message does not come in time."""
        try:
            for tensors in self._responses:
                if STATUS.name in tensors:
                    return parse_status(tensors[STATUS.name])
        except TransportError as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise self._explain(error) from None
        finally:
            self.close()
        return None

    def _result(self) -> Generation:
        if self.knows_request:
            return super()._result()
        formats = tuple(read_assets(self._tensors)) or (RAW,)
        self.request = dataclasses.replace(self.request, formats=formats)
        return dataclasses.replace(super()._result(), frames=self._tensors.get(FRAMES.name))

    def stop(self) -> str:
        """Stop following it and the request too; the answer as in `Client.stop`."""
        self.close()
        try:
            return send_stop(self._transport, self.request_id, STOP_TIMEOUT_S)
        except TransportError as error:
            raise self._explain(error) from None

    def _end(self, *, stop: bool) -> str | TransportError:
        return super()._end(stop=False)


class GenerationHandle:
    """One submitted request. Made by `Client.submit` and `Client.attach`; threads may share it.

    The server keeps the result for some minutes (docs/edge.md says how long) after which the id is unknown.
    """

    def __init__(
        self, request_id: str, follow: Callable[[float | None], KeptStream], stop: Callable[[float], str]
    ) -> None:
        self.id = request_id
        self._follow, self._stop = follow, stop

    def status(self, timeout_s: float = 5.0) -> Status | None:
        """Where the request stands: `phase` is queued, denoising, finished or ended (`early_end` says why).

        None if the server, which has the request, says nothing within `timeout_s`.

        Raises:
            RequestNotFoundError: nothing goes by this id, or not any more.
            ServerUnavailableError: no server answers.
        """
        return self._follow(timeout_s).first_status()

    def events(self, timeout_s: float | None = None) -> KeptStream:
        """The newest event and all that follow, up to Finished; as often as wanted, also after the end.

        Leaving them early does not stop the request. `timeout_s` and errors as in `Client.stream`, and
        RequestNotFoundError.
        """
        return self._follow(timeout_s)

    def result(self, timeout_s: float | None = None) -> Generation:
        """Wait for the result. RequestTimeoutError after `timeout_s` does not stop the request: ask again."""
        with self.events(timeout_s) as events:
            for event in events:
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("a stream ends with Finished or raises")

    def cancel(self, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """Stop the request at its next step; the answer, and errors, as in `Client.stop`."""
        return self._stop(timeout_s)
