"""How a request joins the trace of the application that makes it, if that uses OpenTelemetry: no dependency."""

import sys

from diffsplat_client.connection import Headers


def trace_headers() -> Headers:
    """Headers that name the active span, as the application's propagators write them; none where nothing is traced."""
    if "opentelemetry.trace" not in sys.modules:  # nobody can have made a span
        return ()
    from opentelemetry import propagate

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return tuple((name.lower(), value) for name, value in headers.items())
