"""Operations: all that a client does, as coroutines; `Client` and `AsyncClient` are two ways to call them."""

import dataclasses
import functools
import time
import uuid
from typing import Any

import numpy as np

from diffsplat_client.contract import ATTACH, ENSEMBLE, KEEP, ON_DISCONNECT, RECONSTRUCTION
from diffsplat_client.errors import ServerUnavailableError
from diffsplat_client.event_reader import STOP_TIMEOUT_S, Calls, EventReader
from diffsplat_client.failures import connection_error, early_end_error
from diffsplat_client.formats import check_installed
from diffsplat_client.probes import ServerStatus, probe_models
from diffsplat_client.reconstruction import Reconstruction, parse_reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest, as_request
from diffsplat_client.session import Session, _Transport
from diffsplat_client.status import find_early_end
from diffsplat_client.time_limits import check_timeout
from diffsplat_client.transport import AsyncResponseStream, Parameters, Tensors, TransportError


class Operations(Session[_Transport]):
    """The core of both clients."""

    def _limit_s(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _follow_new(
        self, prompt: str | GenerationRequest, options: dict[str, Any], timeout_s: float | None
    ) -> EventReader:
        """A request that is stopped when its reader leaves."""
        request = checked_generation(prompt, options)
        limit_s, request_id = self._limit_s(timeout_s), new_id()

        async def send(started: float) -> AsyncResponseStream:
            transport = await self._connect(started, limit_s)
            return self._send(transport, ENSEMBLE, request.to_tensors(), request_id, started, limit_s)

        return self._add_reader(EventReader(self._calls(send, request_id, limit_s), self._runtime, request, request_id))

    def _follow_kept(self, request_id: str, request: GenerationRequest | None, timeout_s: float | None) -> EventReader:
        """A request that the server keeps; `request` is None when only the id is known."""
        limit_s = self._limit_s(timeout_s)

        async def send(started: float) -> AsyncResponseStream:
            return await self._send_to_edge(request_id, {}, {ATTACH: True}, started, limit_s)

        calls = self._calls(send, request_id, limit_s)
        return self._add_reader(EventReader(calls, self._runtime, request, request_id, kept=True))

    def _calls(self, send: Any, request_id: str, limit_s: float) -> Calls:
        stop = functools.partial(self._stop, request_id, STOP_TIMEOUT_S)
        return Calls(send, functools.partial(self._request_error, timeout_s=limit_s), stop)

    def _add_reader(self, reader: EventReader) -> EventReader:
        with self._lock:
            self._readers.add(reader)
        return reader

    async def _submit(self, request: GenerationRequest, request_id: str, timeout_s: float | None) -> None:
        await self._read_first(request_id, request.to_tensors(), {ON_DISCONNECT: KEEP}, self._limit_s(timeout_s))

    async def _attach(self, request_id: str, timeout_s: float | None) -> None:
        await self._read_first(request_id, {}, {ATTACH: True}, self._limit_s(timeout_s))

    async def _read_first(self, request_id: str, tensors: Tensors, parameters: Parameters, limit_s: float) -> None:
        """Wait for the first response, which says that the edge has the request."""
        responses = await self._send_to_edge(request_id, tensors, parameters, time.monotonic(), limit_s)
        try:
            await responses.read()
        except TransportError as error:
            raise self._request_error(error, limit_s) from None
        finally:
            responses.cancel()

    async def _send_to_edge(
        self, request_id: str, tensors: Tensors, parameters: Parameters, started: float, limit_s: float
    ) -> AsyncResponseStream:
        transport = await self._connect_to_edge(started, limit_s)
        return self._send(transport, ENSEMBLE, tensors, request_id, started, limit_s, parameters)

    async def _reconstruct(self, request: ReconstructionRequest, timeout_s: float | None) -> Reconstruction:
        limit_s, request_id, started = self._limit_s(timeout_s), new_id(), time.monotonic()
        transport = await self._connect(started, limit_s, RECONSTRUCTION)
        if "reconstruction" not in self.server_parameters:
            raise ServerUnavailableError(
                f"the server at {self.url} makes no reconstructions: its bundle has no GSRecon, or it is older"
            )
        tensors: Tensors = {}
        responses = self._send(transport, RECONSTRUCTION, request.to_tensors(), request_id, started, limit_s)
        try:
            while (more := await responses.read()) is not None:
                tensors |= more
            if (end := find_early_end(tensors)) is not None:
                raise early_end_error(end)
        except TransportError as error:
            raise self._request_error(error, limit_s) from None
        finally:
            responses.cancel()
        return parse_reconstruction(tensors, request, request_id, started)

    async def _status(self, timeout_s: float) -> ServerStatus:
        timeout_s = check_timeout(timeout_s)
        try:
            transport = self._open()
            ready = await transport.server_ready(timeout_s)
            parameters = await self._ensemble_parameters(transport, timeout_s)
            models = await probe_models(transport, timeout_s, reconstruction="reconstruction" in parameters)
        except TransportError as error:
            raise connection_error(error, self.connection, timeout_s) from None
        return ServerStatus(ready and all(model.state == "READY" for model in models), models, parameters)


def new_id() -> str:
    """A new request id. It cannot be guessed, since knowing it is enough to stop the request."""
    return uuid.uuid4().hex


def checked_generation(prompt: str | GenerationRequest, options: dict[str, Any]) -> GenerationRequest:
    """The request that `Client.generate` is asked for; InvalidRequestError when something of it is wrong."""
    request = as_request(prompt, options).validate()
    check_installed(request.formats)
    return request


def checked_reconstruction(
    images: np.ndarray | ReconstructionRequest, camera_to_world: np.ndarray | None, options: dict[str, Any]
) -> ReconstructionRequest:
    """The request that `Client.reconstruct` is asked for; InvalidRequestError when something of it is wrong."""
    if camera_to_world is not None:
        options = {**options, "camera_to_world": camera_to_world}
    if isinstance(images, ReconstructionRequest):
        request = dataclasses.replace(images, **options).validate()
    else:
        request = ReconstructionRequest(images, **options).validate()
    check_installed(request.formats)
    return request
