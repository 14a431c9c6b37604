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
import time
import uuid
from typing import Any

import numpy as np

from diffsplat_client.contract import ENSEMBLE, RECONSTRUCTION
from diffsplat_client.errors import ServerUnavailableError
from diffsplat_client.events import Finished
from diffsplat_client.failures import connection_error, early_end_error
from diffsplat_client.formats import check_installed
from diffsplat_client.generation import Generation
from diffsplat_client.probes import ServerStatus, probe_models
from diffsplat_client.reconstruction import Reconstruction, parse_reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest, as_request
from diffsplat_client.status import find_early_end
from diffsplat_client.stream import GenerationStream
from diffsplat_client.submission import Submission
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S, check_timeout
from diffsplat_client.transport import Tensors, TransportError


class Client(Submission):
    """A connection to one server, made when it is first needed. Threads may share a client."""

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
        request = as_request(prompt, options).validate()
        check_installed(request.formats)
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
        check_installed(request.formats)
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
                raise early_end_error(end)
        except TransportError as error:
            raise self._request_error(error, timeout_s) from None
        return parse_reconstruction(tensors, request, request_id, started)

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
