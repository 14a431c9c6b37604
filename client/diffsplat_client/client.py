"""Client: one prompt or image in, one object out.

    client = Client("localhost:8001")
    generation = client.generate("a red cube", steps=20, timeout_s=60)
    write_ply("splats.ply", generation.cloud)

    with client.stream("a red cube") as events:
        for event in events:
            match event:
                case Progress(step=step, steps=steps): print(step, "of", steps)
                case Finished(result=generation): ...

Leaving a stream early stops the request. `AsyncClient` is the twin for asyncio.
"""

import functools
from typing import Any, TypeVar

import numpy as np

from diffsplat_client.event_reader import STOP_TIMEOUT_S
from diffsplat_client.generation import Generation
from diffsplat_client.handle import GenerationHandle
from diffsplat_client.operations import Operations, checked_generation, checked_reconstruction, new_id
from diffsplat_client.probes import ServerStatus
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest
from diffsplat_client.runtime import BlockingRuntime, BlockingTransport, Runtime, run
from diffsplat_client.stream import GenerationStream
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S
from diffsplat_client.transport import AsyncTransport, Transport

_Client = TypeVar("_Client", bound="Client")


class Client(Operations[Transport]):
    """A connection to one server, made when it is first needed. Threads may share a client."""

    _runtime: Runtime = BlockingRuntime()

    def _adapt(self, transport: Transport) -> AsyncTransport:
        return BlockingTransport(transport)

    def __enter__(self: _Client) -> _Client:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the connection."""
        self.close()

    def close(self) -> None:
        """Stop what still runs and let go of the connection; a later call makes a new one."""
        run(self._close())

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
        return run(self._follow_new(prompt, options, timeout_s).result())

    def generate_all(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> list[Generation]:
        """Generate the objects of `num_seeds` seeds and wait for all of them; arguments and errors as in `generate`."""
        return run(self._follow_new(prompt, options, timeout_s).results())

    def stream(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> GenerationStream:
        """Generate one object and follow it; arguments and errors as in `generate`.

        The request is sent before this returns. Closing the stream early, as leaving a `with` block does, stops the
        request on the server.
        """
        reader = self._follow_new(prompt, options, timeout_s)
        run(reader.open())
        return GenerationStream(reader)

    def submit(
        self,
        prompt: str | GenerationRequest = "",
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> GenerationHandle:
        """Hand a request over to an edge, which finishes it without this client and keeps its result.

        Args:
            prompt: as in `generate`.
            request_id: an id of the caller's, unguessable, at most 128 printable ASCII characters. The same request may
                be submitted again under it, and is computed once; None: a new one.
            timeout_s: seconds until the server confirms that it has the request.
            options: as in `generate`; `deadline_s` bounds the time that the server spends on it.

        Raises:
            InvalidRequestError: also for an id that another request has.
            ServerUnavailableError: also for Triton without an edge.
            AuthenticationError, ContractMismatchError, RequestTimeoutError: as in `generate`.
        """
        request = checked_generation(prompt, options)
        request_id = new_id() if request_id is None else request_id
        run(self._submit(request, request_id, timeout_s))
        return self._handle(request_id, request)

    def attach(
        self, request_id: str, request: GenerationRequest | None = None, *, timeout_s: float | None = None
    ) -> GenerationHandle:
        """Find a submitted request again, running or finished; arguments as in `submit`.

        Without the `request`, results have one that says only what they show: the files' formats.

        Raises:
            RequestNotFoundError: nothing goes by this id, or not any more.
            ServerUnavailableError: also for Triton without an edge.
        """
        run(self._attach(request_id, timeout_s))
        return self._handle(request_id, request)

    def _handle(self, request_id: str, request: GenerationRequest | None) -> GenerationHandle:
        follow = functools.partial(self._follow_kept, request_id, request)
        return GenerationHandle(request_id, follow, functools.partial(self._stop, request_id))

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
        return run(self._reconstruct(checked_reconstruction(images, camera_to_world, options), timeout_s))

    def stop(self, request_id: str, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """Stop a generation, of this client or another one, by its id.

        Returns:
            "requested": it ends before its next denoising step. "already_finished": it has been denoised or has ended
            otherwise, not long ago. "not_found": the server knows no such request; one that arrives soon is stopped.

        Raises:
            ServerUnavailableError, ServerError: no answer; the request ends at its own deadline.
        """
        return run(self._stop(request_id, timeout_s))

    def status(self, timeout_s: float = CONNECT_TIMEOUT_S) -> ServerStatus:
        """Ask the server and each of its stages whether they respond; a stage has `timeout_s` to answer.

        Raises:
            ServerUnavailableError: no server answers.
        """
        return run(self._status(timeout_s))
