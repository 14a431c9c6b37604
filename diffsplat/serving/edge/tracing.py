"""Traces as far as they cost nothing: the headers by which a caller names its trace. See traces.py for the rest."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from diffsplat.serving.errors import ServerStartError

if TYPE_CHECKING:
    from diffsplat.serving.edge.metrics import EdgeMetrics
    from diffsplat.serving.edge.traces import Traces

_HEADERS = ("traceparent", "tracestate")  # of W3C Trace Context


def trace_headers(headers: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Those of a call that say which trace and which span of it the caller is in."""
    return {name: str(value) for name, value in headers if name in _HEADERS}


def open_traces(url: str, prompts: bool, metrics: "EdgeMetrics") -> "Traces":
    """Traces to a collector. ServerStartError without the packages of the extra, and for a url that is none."""
    try:
        from diffsplat.serving.edge.traces import Traces
    except ModuleNotFoundError as error:
        raise ServerStartError(
            f"--traces: needs the module {error.name}; `pip install 'diffsplat-triton[traces]'` brings it"
        ) from None
    return Traces(url, prompts, metrics.note_spans)
