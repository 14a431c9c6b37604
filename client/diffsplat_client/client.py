"""Client: one prompt or image in, one object out.

    client = Client("localhost:8001")
    generation = client.generate("a red cube", steps=20, timeout_s=60)
    write_ply("splats.ply", generation.cloud)

    with client.stream("a red cube") as events:
        for event in events:
            match event:
                case Progress(step=step, steps=steps): print(step, "of", steps)
                case Finished(result=generation): ...

Whoever stops reading stops the request.
"""

import dataclasses
import threading
import time
import uuid
import weakref
from typing import Any

import numpy as np

from diffsplat_client.connection import DEFAULT_URL, KEEP_ALIVE_S, Connection, FilePath, token_from_environment
from diffsplat_client.contract import CONTRACT_VERSION, DEADLINE, ENSEMBLE, ERROR_CODES, RECONSTRUCTION
from diffsplat_client.errors import (
    ContractMismatchError,
    DiffSplatError,
    ServerUnavailableError,
)
from diffsplat_client.events import Finished
from diffsplat_client.failures import connection_error, request_error
from diffsplat_client.formats import check_installed
from diffsplat_client.generation import Generation
from diffsplat_client.output_options import MAX_DEADLINE_S
from diffsplat_client.probes import ServerStatus, probe_models
from diffsplat_client.reconstruction import Reconstruction, parse_reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import find_early_end
from diffsplat_client.stream import GenerationStream
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, check_timeout, not_sent, remaining_s
from diffsplat_client.transport import (
    GrpcTransport,
    ResponseStream,
    Tensors,
    Transport,
    TransportError,
)

# Readiness and contract are asked again after this long: gRPC reconnects by itself, perhaps to another server. No
# server stops and starts again in less.
RECHECK_S = 1.0


class Client:
    """A connection to one server, made when it is first needed. Threads may share a client."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token: str | None = None,
        tls: bool | None = None,
        ca_certificate: FilePath | None = None,
        client_certificate: tuple[FilePath, FilePath] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
        transport: Transport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: HOST:PORT of the server's gRPC port; grpcs://HOST:PORT for TLS.
            timeout_s: how long one generation may take in all, unless the call says otherwise.
            token: by which the server knows the client; None: that of the environment's DIFFSPLAT_TOKEN, if any.
            tls: whether the connection is encrypted; None: when a certificate is given.
            ca_certificate: PEM file of the server's authority, if it is not one of the usual ones.
            client_certificate: PEM files of the client's certificate and of its key.
            keep_alive_s: seconds between pings while requests run; only an edge lets them be less than 300.
            transport: what to speak instead of gRPC, for tests and other wires.
        """
        token = token_from_environment() if token is None else token
        self.connection = Connection(url, token, tls, ca_certificate, client_certificate, keep_alive_s)
        self.url = self.connection.url
        self.timeout_s = check_timeout(timeout_s)
        self.server_parameters: dict[str, str] = {}  # the ensemble's, known after the first request
        self._transport = transport
        self._checked_at: float | None = None  # monotonic time of the last check of this connection
        self._streams: weakref.WeakSet[GenerationStream] = weakref.WeakSet()  # of the present connection
        self._lock = threading.Lock()

    def __enter__(self) -> "Client":
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the connection."""
        self.close()

    def close(self) -> None:
        """Stop what still runs and let go of the connection; a later call makes a new one."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:  # while their STOP can still be sent
            stream.close()
        with self._lock:
            if self._transport is not None:
                self._transport.close()
                self._transport = None
            self._checked_at = None

    def generate(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> Generation:
        """Generate one object and wait for it.

        Args:
            prompt: the prompt, which may be left out with an image, or a whole request.
            timeout_s: seconds for everything, from the connection to the last byte; then the request is stopped.
            options: fields of GenerationRequest.

        Raises:
            InvalidRequestError: a field is out of range; nothing was computed.
            ServerUnavailableError: no server, not ready, or gone during the request.
            AuthenticationError: the server does not know the token, or wants one.
            ContractMismatchError: the server speaks another version of the contract.
            RequestTimeoutError: `timeout_s` passed.
            RequestCancelledError: something stopped the request.
            ServerError: the server failed.
        """
        with self.stream(prompt, timeout_s=timeout_s, **options) as events:
            for event in events:
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("a stream ends with Finished or raises")

    def stream(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> GenerationStream:
        """Generate one object and follow it; arguments and errors as in `generate`.

        The request is sent before this returns. Whoever stops reading early closes the stream (`with` does it), and
        the server stops working on the request.
        """
        request = _as_request(prompt, options).validate()
        check_installed(request.format)
        timeout_s = self.timeout_s if timeout_s is None else check_timeout(timeout_s)
        started = time.monotonic()
        transport = self._connect(started, timeout_s)
        request_id = uuid.uuid4().hex  # whoever knows it can stop the request: it must not be guessable
        responses = self._send(transport, ENSEMBLE, request.to_tensors(), request_id, started, timeout_s)
        stream = GenerationStream(
            transport, responses, request, request_id, started, lambda error: self._request_error(error, timeout_s)
        )
        with self._lock:
            self._streams.add(stream)
        return stream

    def reconstruct(
        self,
        images: np.ndarray | ReconstructionRequest,
        camera_to_world: np.ndarray | None = None,
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Make splats of views of an object, by the bundle's GSRecon, and wait for them.

        Args:
            images: [V, H, W, 3] uint8, or floats in [0, 1], over white; or a whole request.
            camera_to_world: [V, 4, 4], left out with a whole request.
            timeout_s: as in `generate`.
            options: other fields of ReconstructionRequest: maps, intrinsics, and what is wanted of the splats.

        Raises:
            InvalidRequestError: a field is out of range, or not what the served bundle takes.
            ServerUnavailableError: also when the served bundle has no GSRecon.
            ContractMismatchError, RequestTimeoutError, ServerError: as in `generate`.
        """
        if camera_to_world is not None:
            options["camera_to_world"] = camera_to_world
        if isinstance(images, ReconstructionRequest):
            request = dataclasses.replace(images, **options).validate()
        else:
            request = ReconstructionRequest(images, **options).validate()
        check_installed(request.format)
        timeout_s = self.timeout_s if timeout_s is None else check_timeout(timeout_s)
        started = time.monotonic()
        transport = self._connect(started, timeout_s)
        if "reconstruction" not in self.server_parameters:
            raise ServerUnavailableError(
                f"the server at {self.url} makes no reconstructions: its bundle has no GSRecon, or it is older"
            )
        request_id = uuid.uuid4().hex
        tensors: Tensors = {}
        try:
            for response in self._send(transport, RECONSTRUCTION, request.to_tensors(), request_id, started, timeout_s):
                tensors |= response
            if (end := find_early_end(tensors)) is not None:
                raise TransportError(ERROR_CODES[end.error_type], end.message)
        except TransportError as error:
            raise self._request_error(error, timeout_s) from None
        return parse_reconstruction(tensors, request, request_id, started)

    def _send(
        self, transport: Transport, model: str, tensors: Tensors, request_id: str, started: float, timeout_s: float
    ) -> ResponseStream:
        """Send one request, for which there are `timeout_s` seconds from `started` on.

        The server gets the time that is left as the request's deadline, so that it gives up a request whose client has
        died.
        """
        left_s = remaining_s(started, timeout_s)
        asked_s = tensors[DEADLINE.name].item() if DEADLINE.name in tensors else MAX_DEADLINE_S
        tensors = {**tensors, DEADLINE.name: np.array([min(asked_s, left_s, MAX_DEADLINE_S)], np.float32)}
        try:
            return transport.stream(model, tensors, request_id, left_s)
        except TransportError as error:
            raise self._request_error(error, timeout_s) from None

    def status(self, timeout_s: float = CONNECT_TIMEOUT_S) -> ServerStatus:
        """Ask the server and each of its stages for a sign of life; a stage has `timeout_s` to answer.

        Raises:
            ServerUnavailableError: no server answers.
        """
        timeout_s = check_timeout(timeout_s)
        transport = self._open()
        try:
            ready = transport.server_ready(timeout_s)
            parameters = self._ensemble_parameters(transport, timeout_s)
            models = probe_models(transport, timeout_s, reconstruction="reconstruction" in parameters)
        except TransportError as error:
            raise connection_error(error, self.connection, timeout_s) from None
        return ServerStatus(ready and all(model.state == "READY" for model in models), models, parameters)

    def _ensemble_parameters(self, transport: Transport, timeout_s: float) -> dict[str, str]:
        """Empty when the ensemble is not loaded."""
        try:
            return transport.parameters(ENSEMBLE, timeout_s)
        except TransportError as error:
            if error.code == "NOT_FOUND" or "unknown model" in error.message:
                return {}
            raise

    def _open(self) -> Transport:
        with self._lock:
            if self._transport is None:
                self._transport = GrpcTransport(self.connection)
            return self._transport

    def _connect(self, started: float, timeout_s: float) -> Transport:
        """The transport to a server that is ready and speaks this contract, within what is left of `timeout_s`."""
        transport = self._open()
        if self._checked_at is not None and started - self._checked_at < RECHECK_S:
            return transport
        try:
            question_s = min(remaining_s(started, timeout_s), CONNECT_TIMEOUT_S)
            if not transport.server_ready(question_s):
                raise ServerUnavailableError(f"the server at {self.url} is not ready: it is starting or stopping")
            question_s = min(remaining_s(started, timeout_s), CONNECT_TIMEOUT_S)
            parameters = transport.parameters(ENSEMBLE, question_s)
        except TransportError as error:
            if error.code == "DEADLINE_EXCEEDED" and question_s < CONNECT_TIMEOUT_S:
                raise not_sent(timeout_s) from None
            raise connection_error(error, self.connection, timeout_s=question_s) from None
        version = parameters.get("contract_version")
        if version != str(CONTRACT_VERSION):
            raise ContractMismatchError(
                f"the server at {self.url} speaks contract version {version or 'unknown'}, this client "
                f"{CONTRACT_VERSION}: install matching releases"
            )
        self.server_parameters = parameters
        self._checked_at = time.monotonic()
        return transport

    def _request_error(self, error: TransportError, timeout_s: float) -> DiffSplatError:
        """The typed error for a failed request."""
        if error.code == "UNAVAILABLE":
            self._checked_at = None  # what comes back may be another server
        return request_error(error, self.connection, timeout_s)


def _as_request(prompt: str | GenerationRequest, options: dict[str, Any]) -> GenerationRequest:
    if isinstance(prompt, GenerationRequest):
        return dataclasses.replace(prompt, **options)
    return GenerationRequest(prompt, **options)
