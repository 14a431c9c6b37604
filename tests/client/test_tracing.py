"""A request of an application that uses OpenTelemetry says which span it belongs to."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from diffsplat_client import AsyncClient, Client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from tests.client.protocol_server import HANGS_S, Servicer

TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("an application")


def blocking(url: str) -> None:
    with Client(url, timeout_s=HANGS_S) as client:
        client.generate("small")


def asynchronous(url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url, timeout_s=HANGS_S) as client:
            await client.generate("small")

    asyncio.run(main())


@pytest.mark.parametrize("generate", [blocking, asynchronous])
def test_the_active_span_is_named(server: Servicer, generate: Callable[[str], None]) -> None:
    with TRACER.start_as_current_span("a page") as span:
        generate(server.url)
    context = span.get_span_context()
    named = f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"
    assert server.metadata["traceparent"] == named
    generate(server.url)
    assert "traceparent" not in server.metadata, "no span is active"


def test_nothing_is_loaded_for_applications_without_it() -> None:
    code = "from diffsplat_client.tracing import trace_headers; import sys; print(trace_headers(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS_S)
    headers, *modules = done.stdout.split()
    assert headers == "()" and "diffsplat_client" in modules and "opentelemetry" not in modules
