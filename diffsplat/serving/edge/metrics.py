"""What the edge does, as Prometheus metrics on a port of its own: Triton's page does not know clients.

The counters live as long as `diffsplat serve`, over restarts of Triton; those on Triton's page start anew.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

from diffsplat_client.contract import END_STATES, ENSEMBLES, ERROR_CODES
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from diffsplat.serving.edge.admission import RefusedError
from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.errors import ServerStartError

BUCKETS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
STATE_TIMEOUT_S = 5.0  # for the edge's own thread to say where it stands


class EdgeState(NamedTuple):
    """Where an edge stands now; each field is a gauge."""

    ready: int  # 1 while requests are taken and computed
    running: int  # requests that have not ended
    clients: int  # that have something running
    unread_bytes: int  # of answers that wait for their readers
    kept_results: int
    kept_bytes: int


_ABOUT = {
    "ready": "Whether requests are taken and computed",
    "running": "Requests that have not ended",
    "clients": "Clients with a request that has not ended",
    "unread_bytes": "Bytes of answers in memory that wait for their readers",
    "kept_results": "Results on disk that outlive their readers",
    "kept_bytes": "Bytes of these",
}
Ask = Callable[[], EdgeState]


class EdgeMetrics:
    """Counters and histograms of one edge; all of them are there, at 0, from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "diffsplat_edge_request_seconds",
            "From a request's arrival to the end of its last answer, by end state",
            ["model", "end_state"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._first = self._histogram("first_answer_seconds", "From a request's arrival to its first answer")
        self._refused = Counter(
            "diffsplat_edge_refused", "Requests that were not taken", ["error_type"], registry=self.registry
        )
        self._answered = self._counter("answer_bytes", "Bytes of answers")
        self._sent_again = self._counter("sent_again", "Requests sent to Triton once more, since it or a stage died")
        self._spans = Counter(
            "diffsplat_edge_trace_spans",
            "Spans of traces that were exported to the collector, or lost",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("exported", "lost"):
            self._spans.labels(outcome)
        for error_type in ERROR_CODES:
            self._refused.labels(error_type)
        for model in ENSEMBLES:
            for end_state in END_STATES:
                self._seconds.labels(model, end_state)

    def ended(self, client: str, job: Job) -> None:
        """A request has ended."""
        if not job.inference.repeatable:  # a probe of a stage, not a request
            return
        self._seconds.labels(job.inference.model, job.end_state).observe(job.seconds)
        if job.first_answer_s is not None:
            self._first.observe(job.first_answer_s)
        self._answered.inc(job.answer_bytes)
        self._sent_again.inc(max(job.runs_begun - 1, 0))

    def refused(self, client: str, error: RefusedError) -> None:
        """A request was not taken."""
        self._refused.labels(error.code).inc()

    def note_spans(self, outcome: str, spans: int) -> None:
        """Spans were "exported" or "lost". From any thread."""
        self._spans.labels(outcome).inc(spans)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"diffsplat_edge_{name}", about, buckets=BUCKETS_S, registry=self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"diffsplat_edge_{name}", about, registry=self.registry)


class MetricsPage:
    """`http://ADDRESS:PORT/metrics`, served by threads of its own.

    Args:
        metrics: what has happened.
        loop: the edge's; `state` is called in it, since nothing else may look at its requests.
        state: where the edge stands.
        address, port: IPv4 address and port to listen on.

    Raises:
        ServerStartError: the port cannot be used.
    """

    def __init__(
        self, metrics: EdgeMetrics, loop: asyncio.AbstractEventLoop, state: Ask, address: str, port: int
    ) -> None:
        self._loop, self._state = loop, state
        metrics.registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, address, metrics.registry)
        except OSError as error:
            raise ServerStartError(f"cannot listen on {address}:{port}: {error}") from None

    def collect(self) -> Iterator[Metric]:
        """The gauges of one look at the page; called by the registry."""
        for name, value in self._ask()._asdict().items():
            yield GaugeMetricFamily(f"diffsplat_edge_{name}", _ABOUT[name], value)

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not look before somebody asks."""
        return []

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _ask(self) -> EdgeState:
        async def look() -> EdgeState:
            return self._state()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result(STATE_TIMEOUT_S)
