"""An OpenTelemetry collector: a real OTLP receiver that keeps the spans it gets."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.serving.edge.scripted import PATIENCE_S


class Collector(TraceServiceServicer):
    """Takes spans while `open` is set, and refuses them with `error`, if there is one."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Any] = []
        self.resource: dict[str, object] = {}
        self.error: grpc.StatusCode | None = None
        self.calls = 0
        self.open = threading.Event()
        self.open.set()
        self.changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            context.abort(self.error, "not now")
        with self.changed:
            for resource in request.resource_spans:
                self.resource = values(resource.resource.attributes)
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.changed.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S)

    def root_of(self, request_id: str) -> Any:
        """Wait for the root span of a request."""
        self.wait_for(lambda: bool(self._roots(request_id)))
        (root,) = self._roots(request_id)
        return root

    def below(self, root: Any) -> list[Any]:
        """Spans below a root: batches keep the order in which spans ended, and a root ends last."""
        return [span for span in self.spans if span.parent_span_id == root.span_id]

    def _roots(self, request_id: str) -> list[Any]:
        return [span for span in self.spans if facts(span).get("diffsplat.request.id") == request_id]


def values(attributes: Any) -> dict[str, object]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


def facts(span: Any) -> dict[str, object]:
    return values(span.attributes)


def events(span: Any) -> list[str]:
    return [event.name for event in span.events]


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector at its `url`."""
    collector = Collector()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        add_TraceServiceServicer_to_server(collector, server)
        collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            collector.open.set()
            server.stop(None).wait(PATIENCE_S)
