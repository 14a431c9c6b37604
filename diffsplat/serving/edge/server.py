"""The edge's server: listens for clients, on a thread with an event loop of its own.

with Edge(supervisor, supervisor.server.grpc_url, port=8001) as edge:
    client = Client(edge.grpc_url)
"""

import asyncio
import importlib.util
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from diffsplat.serving.edge.calls import Calls
from diffsplat.serving.edge.clients import ClientLimits, Clients
from diffsplat.serving.edge.dispatch import Dispatcher, RequestObserver
from diffsplat.serving.edge.identity import Doorman, TokenFile
from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.edge.metrics import EdgeMetrics, EdgeState, MetricsPage
from diffsplat.serving.edge.request_log import RequestLog
from diffsplat.serving.edge.results_store import KeepPolicy, ResultStore
from diffsplat.serving.edge.tls import TlsFiles
from diffsplat.serving.edge.tracing import open_traces
from diffsplat.serving.edge.upstream import ServerRuns, TritonUpstream
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.ports import LOOPBACK, choose_ports, reached_at

if TYPE_CHECKING:
    from aiohttp import web

    from diffsplat.serving.edge.traces import Traces

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 1000, 3500  # a client that vanished is noticed within their sum
_CLIENT_PINGS_MS = 1000  # clients may ping this often
_IDLE_CHECK_S = 0.05
_METRICS = "the edge's metrics"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class EdgeSettings:
    """How an edge treats its clients.

    Attributes:
        limits: what one client may have.
        keep: which results outlive their readers.
        tls: certificates; None: connections are not encrypted.
        tokens: clients need one of these.
        request_log: file of the log of requests; None: none is written.
        log_prompts: whether it, and spans, hold prompts.
        traces: URL of an OpenTelemetry collector; None: there are no traces.
    """

    limits: ClientLimits = ClientLimits()
    keep: KeepPolicy = KeepPolicy()
    tls: TlsFiles | None = None
    tokens: Path | None = None
    request_log: Path | None = None
    log_prompts: bool = False
    traces: str | None = None


class Edge:
    """What clients reach of a server.

        with Edge(supervisor, supervisor.server.grpc_url, port=8001) as edge:
            client = Client(edge.grpc_url)

    Args:
        runs: which run of Triton serves.
        upstream_url: HOST:PORT of Triton's gRPC port.
        address, port: IPv4 address and port to listen on; port 0 takes a free one.
        http_port: of the HTTP front; None: there is none.
        metrics_port: of its own metrics; None: there is no page.
        settings: how it treats its clients.

    Attributes:
        grpc_url, http_url, metrics_url: where this machine reaches it; None for what it has not.
    """

    def __init__(
        self,
        runs: ServerRuns,
        upstream_url: str,
        *,
        address: str = LOOPBACK,
        port: int = 0,
        http_port: int | None = None,
        metrics_port: int | None = None,
        settings: EdgeSettings | None = None,
    ) -> None:
        self._runs, self._upstream_url = runs, upstream_url
        self._address = address
        asked = {"gRPC": port, "HTTP": http_port, _METRICS: metrics_port}
        self._asked_ports = {name: number for name, number in asked.items() if number is not None}
        self._settings = settings or EdgeSettings()
        self._thread: threading.Thread | None = None
        self._http: web.AppRunner | None = None
        self._page: MetricsPage | None = None
        self._traces: Traces | None = None

    def __enter__(self) -> "Edge":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises ServerStartError if the port is in use, or a file of the settings cannot be used."""
        tokens = self._settings.tokens
        self._doorman = Doorman(None if tokens is None else TokenFile(tokens))
        self._credentials = None if self._settings.tls is None else self._settings.tls.credentials()
        if "HTTP" in self._asked_ports and importlib.util.find_spec("aiohttp") is None:
            raise ServerStartError("--http-port: needs aiohttp; `pip install 'diffsplat-triton[http]'` brings it")
        ports = choose_ports(self._asked_ports, self._address)
        metrics = EdgeMetrics()
        if self._settings.traces is not None:
            self._traces = open_traces(self._settings.traces, self._settings.log_prompts, metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge", daemon=True)
        self._thread.start()
        try:
            if _METRICS in ports:
                self._page = MetricsPage(metrics, self._loop, self._state, self._address, ports[_METRICS])
            self._call(self._listen(ports, metrics))
        except BaseException:
            self._close_page()
            self._end_loop()
            self._close_traces()
            raise
        host = reached_at(self._address)
        self.grpc_url = f"{host}:{ports['gRPC']}"
        scheme = "http" if self._settings.tls is None else "https"
        self.http_url = f"{scheme}://{host}:{ports['HTTP']}" if "HTTP" in ports else None
        self.metrics_url = f"http://{host}:{ports[_METRICS]}/metrics" if _METRICS in ports else None

    @property
    def jobs(self) -> list[Job]:
        """Requests that have not ended."""
        return self._clients.jobs

    @property
    def busy(self) -> bool:
        """Whether a request is running, or an answer has not been read to its end."""
        return self._clients.busy

    def drain(self, timeout_s: float, give_up: threading.Event | None = None) -> bool:
        """Refuse new requests and wait until those that run have ended and been read; whether they have.

        Args:
            timeout_s: how long to wait.
            give_up: ends the wait when it is set.
        """
        return self._call(self._drain(timeout_s, give_up or threading.Event()))

    def stop(self) -> None:
        """Close every connection; requests that still run are lost. May be called twice."""
        self._close_page()
        if self._thread is not None:
            self._call(self._close())
            self._end_loop()
        self._close_traces()

    def _close_traces(self) -> None:
        if self._traces is not None:
            self._traces.close()
            self._traces = None

    def _close_page(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._thread = None
        self._loop.close()

    def _state(self) -> EdgeState:
        clients, store = self._clients, self._store
        ready, running = int(self._dispatcher.ready), len(clients.jobs)
        return EdgeState(ready, running, clients.active, clients.unread_bytes, store.kept, store.kept_bytes)

    async def _listen(self, ports: dict[str, int], metrics: EdgeMetrics) -> None:
        settings = self._settings
        where = f"{self._address}:{ports['gRPC']}"
        self._clients = Clients(settings.limits)
        self._upstream = TritonUpstream(self._upstream_url)
        self._store = ResultStore(settings.keep)
        self._log = RequestLog(settings.request_log, settings.log_prompts)
        observers: list[RequestObserver] = [self._log, metrics]
        if self._traces is not None:
            observers.insert(0, self._traces)  # before the log, which tells the ids of the traces
        self._dispatcher = Dispatcher(self._upstream, self._runs, self._clients, self._store, observers)
        calls = Calls(self._upstream, self._dispatcher, self._clients, self._doorman)
        self._server = grpc.aio.server(options=_server_options(settings.limits))
        self._server.add_generic_rpc_handlers(tuple(calls.handlers()))
        try:
            if self._credentials is None:
                self._server.add_insecure_port(where)
            else:
                self._server.add_secure_port(where, self._credentials)
        except RuntimeError as error:
            await self._upstream.close()
            self._log.close()
            raise ServerStartError(f"cannot listen on {where}: {error}") from None
        await self._server.start()
        if "HTTP" in ports:
            await self._listen_for_http(ports["HTTP"])

    async def _listen_for_http(self, port: int) -> None:
        from aiohttp import web

        from diffsplat.serving.edge.http_front import HttpFront

        size = self._settings.limits.max_request_bytes
        front = HttpFront(self._dispatcher, self._clients, self._doorman, size)
        self._http = front.runner()
        await self._http.setup()
        tls = None if self._settings.tls is None else self._settings.tls.ssl_context()
        await web.TCPSite(self._http, self._address, port, ssl_context=tls).start()

    async def _drain(self, timeout_s: float, give_up: threading.Event) -> bool:
        self._dispatcher.draining = True
        deadline_s = self._loop.time() + timeout_s
        while self._clients.busy and self._loop.time() < deadline_s and not give_up.is_set():
            await asyncio.sleep(_IDLE_CHECK_S)
        return not self._clients.busy

    async def _close(self) -> None:
        if self._http is not None:
            await self._http.cleanup()
        await self._server.stop(grace=None)
        await self._clients.close()
        self._store.close()
        self._log.close()
        await self._upstream.close()


def _server_options(limits: ClientLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second server on the port is an error
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # the one above alone does nothing in grpc 1.85
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # as many as keep-alive needs
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _CLIENT_PINGS_MS),
    ]
