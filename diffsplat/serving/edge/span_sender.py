"""Sends spans in batches from a thread of its own, with a bound on those that wait and on the time of the last ones."""

import logging
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc import exporter as otlp_exporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

MAX_WAITING, MAX_BATCH = 8192, 512  # spans; a request has about ten
CLOSE_LIMIT_S = 5.0
_log = logging.getLogger(__name__)


class SpanSender(SpanExporter):
    """The exporter of OTLP over gRPC, and the processor that feeds it.

    A batch is offered for a minute, with growing pauses, and is then lost. What would wait beyond the bound is lost at
    once. The first trouble with the collector is logged, and no more until a batch has gone through.

    Args:
        url: of the collector.
        count: told how many spans were "exported" or "lost", from any thread.

    Attributes:
        processor: for the tracer provider.
    """

    def __init__(self, url: str, count: Callable[[str, int], None]) -> None:
        self._exporter = OTLPSpanExporter(endpoint=url)
        self._count = count
        self._waiting = 0
        self._lock = threading.Lock()
        self._given_up = False
        self._quiet = _Quiet(urlsplit(url).netloc)
        otlp_exporter.logger.addFilter(self._quiet)
        self.processor = BatchSpanProcessor(self, max_queue_size=MAX_WAITING, max_export_batch_size=MAX_BATCH)

    def has_room_for(self, spans: int) -> bool:
        """Whether these may be ended: all of a request's, or none. They count as waiting from now on."""
        with self._lock:
            room = self._waiting + spans <= MAX_WAITING
            self._waiting += spans if room else 0
        if not room:
            self._count("lost", spans)
        return room

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the processor's thread."""
        result = SpanExportResult.FAILURE
        try:
            if not self._given_up:
                result = self._exporter.export(spans)
        finally:
            sent = result is SpanExportResult.SUCCESS
            with self._lock:
                self._waiting -= len(spans)
            self._count("exported" if sent else "lost", len(spans))
            self._quiet.told &= not sent
        return result

    def shutdown(self) -> None:
        """Called by the processor, after the last batch."""
        self._exporter.shutdown()

    def close(self, shut_down: Callable[[], None]) -> None:
        """Let the provider send what waits, for CLOSE_LIMIT_S at most: its own way waits for the collector."""
        thread = threading.Thread(target=shut_down, name="traces", daemon=True)
        thread.start()
        thread.join(CLOSE_LIMIT_S)
        if thread.is_alive():
            self._given_up = True
            _log.warning("traces: the collector has not taken %d spans in time; they are lost", self._waiting)
        else:
            otlp_exporter.logger.removeFilter(self._quiet)


class _Quiet(logging.Filter):
    """Lets one record about a collector through, until `told` is false again."""

    def __init__(self, collector: str) -> None:
        super().__init__()
        self.told = False
        self._collector = collector

    def filter(self, record: logging.LogRecord) -> bool:
        if self._collector not in record.getMessage():
            return True
        told, self.told = self.told, True
        return not told
