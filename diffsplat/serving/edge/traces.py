"""Traces: each request as a span with its stages below it, for an OpenTelemetry collector. Needs the extra `traces`.

The spans of a request are made when it ends, from what the edge has noted; a thread of their own sends them.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from diffsplat_client.contract import ENSEMBLES
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from diffsplat.serving.edge.admission import RefusedError
from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.edge.request_log import tell_error
from diffsplat.serving.edge.span_sender import SpanSender
from diffsplat.serving.edge.stage_spans import StageSpan, in_ns, place_stages
from diffsplat.serving.errors import ServerStartError

_MAX_ATTRIBUTE_CHARACTERS = 2000
_FAILURES = ("failed", "expired", "refused")  # end states; who stops a request has what it wanted


class Traces:
    """Sends a trace of every request to a collector, unless the caller has said that its trace is not recorded.

    Which traces are recorded where no caller says so, headers for the collector, and more attributes of the service are
    set by OpenTelemetry's own environment variables.

    Args:
        url: `http://HOST:PORT` of an OTLP receiver for gRPC, or `https://`.
        prompts: whether spans hold prompts, and messages that may quote one.
        count: told how many spans were "exported" or "lost".

    Raises:
        ServerStartError: the url is none.
    """

    def __init__(self, url: str, prompts: bool, count: Callable[[str, int], None]) -> None:
        self._prompts = prompts
        self._sender = SpanSender(_check_url(url), count)
        named = OTELResourceDetector().detect()  # by the environment
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "diffsplat"}).merge(named),
            shutdown_on_exit=False,  # which would wait for a collector that is gone
            span_limits=SpanLimits(max_attribute_length=_MAX_ATTRIBUTE_CHARACTERS),
        )
        self._provider.add_span_processor(self._sender.processor)
        self._tracer = self._provider.get_tracer("diffsplat.serving.edge")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, client: str, job: Job) -> None:
        """A request has ended; the job learns the id of its trace."""
        if not job.inference.repeatable:  # a probe of a stage, not a request
            return
        to_epoch_ns = time.time_ns() - time.monotonic_ns()
        stages = place_stages(job.stages.reports, [sent.at_s for sent in job.sent])
        start_ns = in_ns(job.arrived_s) + to_epoch_ns
        root = self._begin(job.inference.model, job.inference.trace_headers, start_ns, dict(_facts(client, job)))
        if self._prompts:
            root.set_attribute("diffsplat.prompt", job.inference.text("PROMPT"))
        self._tell_end(root, job.end_state, job.error_type, job.error)
        for position, sent in enumerate(job.sent):
            why = {"diffsplat.reason": sent.why} if position else {}
            root.add_event("sent again" if position else "sent", why, in_ns(sent.at_s) + to_epoch_ns)
        if job.first_answer_s is not None:
            root.add_event("first answer", None, start_ns + in_ns(job.first_answer_s))
        if root.is_recording() and self._sender.has_room_for(1 + len(stages)):
            for stage in stages:
                self._add_stage(root, stage, to_epoch_ns)
            root.end(in_ns(job.arrived_s + job.seconds) + to_epoch_ns)
            job.trace_id = format_trace_id(root.get_span_context().trace_id)

    def refused(self, client: str, error: RefusedError) -> None:
        """A request was not taken."""
        now_ns = time.time_ns()
        facts = {"diffsplat.client": client}
        model = "" if error.head is None else error.head.model_name
        if error.head is not None:
            facts |= {"diffsplat.request.id": error.head.id, "diffsplat.model": model}
        root = self._begin(model if model in ENSEMBLES else "unknown model", error.trace_headers, now_ns, facts)
        self._tell_end(root, "refused", error.code, str(error))
        if root.is_recording() and self._sender.has_room_for(1):
            root.end(now_ns)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._sender.close(self._provider.shutdown)

    def _begin(self, name: str, headers: dict[str, str], start_ns: int, facts: dict[str, Any]) -> Span:
        caller = self._propagator.extract(headers, Context())
        return self._tracer.start_span(name, caller, SpanKind.SERVER, facts, start_time=start_ns)

    def _add_stage(self, root: Span, stage: StageSpan, to_epoch_ns: int) -> None:
        facts = {"diffsplat.run": stage.run, "diffsplat.index": stage.index}
        start_ns = stage.start_ns + to_epoch_ns
        below = set_span_in_context(root, Context())
        span = self._tracer.start_span(stage.name, below, attributes=facts, start_time=start_ns)
        span.end(start_ns + stage.duration_ns)

    def _tell_end(self, root: Span, end_state: str, error_type: str, error: str) -> None:
        root.set_attribute("diffsplat.end_state", end_state)
        if error_type:
            root.set_attribute("error.type", error_type)
        if end_state in _FAILURES:
            root.set_status(Status(StatusCode.ERROR, tell_error(error_type, error, self._prompts)))


def _facts(client: str, job: Job) -> Iterator[tuple[str, Any]]:
    yield "diffsplat.client", client
    yield "diffsplat.model", job.inference.model
    yield "diffsplat.request.id", job.inference.client_id
    yield "diffsplat.triton.id", job.request_id  # as in Triton's and the stages' logs
    yield "diffsplat.runs", job.runs_begun
    yield "diffsplat.results", job.inference.places
    yield "diffsplat.answer_bytes", job.answer_bytes
    if job.stages.steps is not None:
        yield "diffsplat.steps", job.stages.steps


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ServerStartError(
            f"--traces {url}: must be http://HOST:PORT or https://HOST:PORT of an OTLP receiver for gRPC, such as "
            "http://localhost:4317"
        )
    return url
