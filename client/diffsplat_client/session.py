"""Session: the connection of a client: opened when needed, checked, and what is sent over it."""

import dataclasses
import threading
import time
import weakref
from typing import Generic, TypeVar

import numpy as np

from diffsplat_client.connection import DEFAULT_URL, EDGE_KEEP_ALIVE_S, Connection, FilePath, token_from_environment
from diffsplat_client.contract import (
    CONTRACT_VERSION,
    DEADLINE,
    ENSEMBLE,
    STOP,
    STOP_ANSWER,
    STOP_ANSWERS,
    STOP_MODEL,
)
from diffsplat_client.errors import ContractMismatchError, DiffSplatError, ServerUnavailableError
from diffsplat_client.event_reader import EventReader
from diffsplat_client.failures import connection_error, request_error
from diffsplat_client.output_options import MAX_DEADLINE_S
from diffsplat_client.retries import RetriedResponses, RetryPolicy, check_retries
from diffsplat_client.runtime import Runtime
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, check_timeout, not_sent, remaining_s
from diffsplat_client.transport import AsyncResponseStream, AsyncTransport, Parameters, Tensors, TransportError

# Readiness and contract are asked again after this long: gRPC reconnects by itself, perhaps to another server. No
# server stops and starts again in less.
RECHECK_S = 1.0

_Transport = TypeVar("_Transport")


class Session(Generic[_Transport]):
    """The connection of both clients. `_Transport` is what they may be given in place of gRPC."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token: str | None = None,
        tls: bool | None = None,
        ca_certificate: FilePath | None = None,
        client_certificate: tuple[FilePath, FilePath] | None = None,
        keep_alive_s: float | None = None,
        retries: int = RetryPolicy().retries,
        transport: _Transport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: HOST:PORT of the server's gRPC port; grpcs://HOST:PORT for TLS.
            timeout_s: how long one generation may take in all, unless the call says otherwise.
            token: by which the server knows the client; None: that of the environment's DIFFSPLAT_TOKEN, if any.
            tls: whether the connection is encrypted; None: when a certificate is given.
            ca_certificate: PEM file of the server's authority, if it is not one of the usual ones.
            client_certificate: PEM files of the client's certificate and of its key.
            keep_alive_s: seconds between pings while requests run, by which a network that has gone is noticed.
                None: 10 to an edge; 330 to Triton alone, which allows no less than 300.
            retries: how often a request is sent again after UNAVAILABLE, before its first response and after a pause.
            transport: what to use instead of gRPC, for tests and other wires.
        """
        token = token_from_environment() if token is None else token
        self.connection = Connection(url, token, tls, ca_certificate, client_certificate, keep_alive_s)
        self.url = self.connection.url
        self.timeout_s = check_timeout(timeout_s)
        self._retry_policy = RetryPolicy(check_retries(retries))
        self.server_parameters: dict[str, str] = {}  # the ensemble's, known after the first request
        self._transport = None if transport is None else self._adapt(transport)
        self._checked_at: float | None = None  # monotonic time of the last check of this connection
        self._checked_model = ""  # that it found ready
        self._readers: weakref.WeakSet[EventReader] = weakref.WeakSet()  # of the present connection
        self._pinged_often: AsyncTransport | None = None  # the connection, if it was made for an edge
        self._keeps_requests = False  # whether the last check found an edge
        self._lock = threading.Lock()

    @property
    def _runtime(self) -> Runtime:
        raise NotImplementedError

    def _adapt(self, transport: _Transport) -> AsyncTransport:
        """A transport that was given, in the form that the core sees."""
        raise NotImplementedError

    async def _close(self) -> None:
        """Stop what still runs and let go of the connection."""
        if self._runtime.has_moved():
            self._forget_connection()
        with self._lock:
            readers = list(self._readers)
        for reader in readers:  # while their STOP can still be sent
            await reader.close()
        with self._lock:
            transport = self._transport
            self._forget_connection()
        if transport is not None:
            await transport.close()

    async def _stop(self, request_id: str, timeout_s: float) -> str:
        """Stop a generation; one of contract.STOP_ANSWERS, or a typed error when there is no answer.

        The STOP goes to every version that is loaded: while a server changes over, the older one still works on
        requests.
        """
        timeout_s, answers = check_timeout(timeout_s), set()
        try:
            transport = self._open()
            for version in await transport.versions(STOP_MODEL, timeout_s):
                stop = {STOP.name: np.ones(STOP.dims, np.bool_)}
                responses = transport.stream(STOP_MODEL, stop, request_id, timeout_s, version)
                while (tensors := await responses.read()) is not None:  # an unread stream would be cancelled
                    if STOP_ANSWER.name in tensors:
                        answers.add(tensors[STOP_ANSWER.name].item().decode(errors="replace"))
            known = [answer for answer in STOP_ANSWERS if answer in answers]  # the first one says most
            if not known:
                raise TransportError("INTERNAL", "the server did not say what became of the request")
        except TransportError as error:
            raise connection_error(error, self.connection, timeout_s) from None
        return known[0]

    def _send(
        self,
        transport: AsyncTransport,
        model: str,
        tensors: Tensors,
        request_id: str,
        started: float,
        timeout_s: float,
        parameters: Parameters | None = None,
    ) -> AsyncResponseStream:
        """The responses to one request, which is sent again as the policy says, until `started` + `timeout_s`.

        The server gets the time that is left as the request's deadline, so that it gives up a request whose client has
        died; but for requests with `parameters`, which last: there other tensors would mean another request.
        """

        def send(left_s: float) -> AsyncResponseStream:
            sent = tensors if parameters else _with_deadline(tensors, left_s)
            return transport.stream(model, sent, request_id, left_s, parameters=parameters)

        remaining_s(started, timeout_s)
        try:
            return RetriedResponses(send, started + timeout_s, self._retry_policy, self._runtime.pause())
        except TransportError as error:
            raise self._request_error(error, timeout_s) from None

    async def _ensemble_parameters(self, transport: AsyncTransport, timeout_s: float) -> dict[str, str]:
        """Empty when the ensemble is not loaded."""
        try:
            return await transport.parameters(ENSEMBLE, timeout_s)
        except TransportError as error:
            if error.code == "NOT_FOUND" or "unknown model" in error.message:
                return {}
            raise

    def _open(self) -> AsyncTransport:
        with self._lock:
            if self._runtime.has_moved():
                self._forget_connection()
            if self._transport is None and self.connection.keep_alive_s is None:
                often = dataclasses.replace(self.connection, keep_alive_s=EDGE_KEEP_ALIVE_S)
                self._transport = self._pinged_often = self._runtime.connect(often)
            elif self._transport is None:
                self._transport = self._runtime.connect(self.connection)
            return self._transport

    def _forget_connection(self) -> None:
        self._transport = self._pinged_often = self._checked_at = None
        self._readers = weakref.WeakSet()

    async def _connect(self, started: float, timeout_s: float, model: str = ENSEMBLE) -> AsyncTransport:
        """The transport to a server that is ready and speaks this contract, within what is left of `timeout_s`."""
        question_s = self._question_s(started, timeout_s)
        try:
            transport = self._open()
            if self._checked_at is not None and started - self._checked_at < RECHECK_S and model == self._checked_model:
                return transport
            if not await transport.model_ready(model, question_s):
                raise ServerUnavailableError(f"the server at {self.url} is not ready: it is starting or stopping")
            question_s = self._question_s(started, timeout_s)
            parameters = await transport.parameters(ENSEMBLE, question_s)
            question_s = self._question_s(started, timeout_s)
            keeps_requests = await transport.keeps_requests(question_s)
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
        self.server_parameters, self._keeps_requests = parameters, keeps_requests
        self._checked_at, self._checked_model = time.monotonic(), model
        return transport if keeps_requests else self._ping_seldom(transport)

    def _question_s(self, started: float, timeout_s: float) -> float:
        return min(remaining_s(started, timeout_s), CONNECT_TIMEOUT_S)

    def _ping_seldom(self, transport: AsyncTransport) -> AsyncTransport:
        """For Triton alone, another connection in place of one whose pings suit an edge. What is on it goes on."""
        with self._lock:
            if transport is self._pinged_often and transport is self._transport:
                self._transport = self._runtime.connect(self.connection)
            return self._transport or transport

    async def _connect_to_edge(self, started: float, timeout_s: float) -> AsyncTransport:
        """As `_connect`, for requests whose ids last."""
        transport = await self._connect(started, timeout_s)
        if not self._keeps_requests:
            raise ServerUnavailableError(
                f"the server at {self.url} keeps no requests: it is Triton without an edge; generate and stream work"
            )
        return transport

    def _request_error(self, error: TransportError, timeout_s: float) -> DiffSplatError:
        """The typed error for a failed request."""
        if error.code == "UNAVAILABLE":
            self._checked_at = None  # what comes back may be another server
        return request_error(error, self.connection, timeout_s)


def _with_deadline(tensors: Tensors, left_s: float) -> Tensors:
    """Of what the request itself asks for and the time that its client has left, the shorter one."""
    asked_s = tensors[DEADLINE.name].item() if DEADLINE.name in tensors else MAX_DEADLINE_S
    return {**tensors, DEADLINE.name: np.array([min(asked_s, left_s)], np.float32)}
