"""Submission: requests that an edge finishes and keeps, for clients that leave and come back."""

import functools
import time
import uuid
from typing import Any

from diffsplat_client.contract import ATTACH, ENSEMBLE, KEEP, ON_DISCONNECT
from diffsplat_client.formats import check_installed
from diffsplat_client.handle import GenerationHandle, KeptStream
from diffsplat_client.request import GenerationRequest, as_request
from diffsplat_client.session import Session
from diffsplat_client.time_limits import check_timeout
from diffsplat_client.transport import Parameters, ResponseStream, Tensors, TransportError


class Submission(Session):
    """The part of `Client` that submits and attaches."""

    def submit(
        self,
        prompt: str | GenerationRequest = "",
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> GenerationHandle:
        """Hand a request over to an edge, which finishes it and keeps its result, whoever leaves.

        Args:
            prompt: as in `generate`.
            request_id: an id of the caller's, unguessable, at most 128 printable ASCII characters. The same request may
                be submitted again under it, and is computed once; None: a new one.
            timeout_s: until the server's first word about it.
            options: as in `generate`; `deadline_s` bounds the time that the server spends on it.

        Raises:
            InvalidRequestError: also for an id that another request has.
            ServerUnavailableError: also for Triton without an edge.
            AuthenticationError, ContractMismatchError, RequestTimeoutError: as in `generate`.
        """
        request = as_request(prompt, options).validate()
        check_installed(request.formats)
        request_id = uuid.uuid4().hex if request_id is None else request_id
        self._read_first(request_id, request.to_tensors(), {ON_DISCONNECT: KEEP}, timeout_s)
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
        self._read_first(request_id, {}, {ATTACH: True}, timeout_s)
        return self._handle(request_id, request)

    def _handle(self, request_id: str, request: GenerationRequest | None) -> GenerationHandle:
        def follow(timeout_s: float | None) -> KeptStream:
            responses, started, limit_s = self._ask_edge(request_id, {}, {ATTACH: True}, timeout_s)
            shown = GenerationRequest() if request is None else request
            explain = functools.partial(self._request_error, timeout_s=limit_s)
            stream = KeptStream(self._open(), responses, shown, request_id, started, explain)
            stream.knows_request = request is not None
            return stream

        return GenerationHandle(request_id, follow, functools.partial(self.stop, request_id))

    def _read_first(
        self,
        request_id: str,
        tensors: Tensors,
        parameters: Parameters,
        timeout_s: float | None,
    ) -> None:
        """Wait for the first response, which says that the edge has the request."""
        responses, _, limit_s = self._ask_edge(request_id, tensors, parameters, timeout_s)
        try:
            next(responses, None)
        except TransportError as error:
            raise self._request_error(error, limit_s) from None
        finally:
            responses.cancel()

    def _ask_edge(
        self,
        request_id: str,
        tensors: Tensors,
        parameters: Parameters,
        timeout_s: float | None,
    ) -> tuple[ResponseStream, float, float]:
        """Responses, the monotonic time of the call, and the seconds that it may take."""
        limit_s = self.timeout_s if timeout_s is None else check_timeout(timeout_s)
        started = time.monotonic()
        transport = self._connect_to_edge(started, limit_s)
        return self._ask(transport, ENSEMBLE, tensors, request_id, started, limit_s, parameters), started, limit_s
