"""AsyncClient on a real tritonserver with pico, behind the edge and without it."""

import asyncio
import gc
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import (
    AsyncClient,
    Client,
    InvalidRequestError,
    Progress,
    RequestCancelledError,
    RequestNotFoundError,
    RequestTimeoutError,
    ServerUnavailableError,
)

from diffsplat.serving.edge.service import Service
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from tests.serving.processes import TIMEOUT_S, wait_for

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[3]
LONG_STEPS = 200
RESTART_S = 500.0  # a restart takes as long as a start, on a busy machine minutes
COLOURS = ("red", "green", "blue", "yellow", "white")


@pytest.fixture(scope="module")
def service(pico_repository: Path) -> Iterator[Service]:
    policy = SupervisorPolicy(probe_interval_s=0.5, restart_delays_s=(0.0,))
    with Service(pico_repository, policy=policy) as service:
        yield service
        wait_until_idle(service)


@pytest.fixture(params=["edge", "triton"])
def url(service: Service, request: pytest.FixtureRequest) -> str:
    return service.grpc_url if request.param == "edge" else service.supervisor.server.grpc_url


def client_of(url: str) -> AsyncClient:
    return AsyncClient(url, timeout_s=TIMEOUT_S)


def wait_until_idle(service: Service) -> None:
    wait_for(lambda: service.supervisor.server.requests_in_flight() == 0 and not service.edge.busy)


def test_twenty_generations_at_once_equal_single_ones(url: str) -> None:
    requests = [{"prompt": f"a {COLOURS[i % 5]} cube", "seed": i, "steps": 2 + i % 3} for i in range(20)]

    async def main() -> list[np.ndarray]:
        async with client_of(url) as client:
            results = await asyncio.gather(*(client.generate(**request) for request in requests))
        assert len(asyncio.all_tasks()) == 1
        return [result.cloud.to_array() for result in results]

    together = asyncio.run(main())
    with Client(url, timeout_s=TIMEOUT_S) as client:
        for request, got in zip(requests, together, strict=True):
            np.testing.assert_allclose(got, client.generate(**request).cloud.to_array(), atol=1e-4)


def test_a_cancelled_task_frees_its_slot(service: Service, url: str) -> None:
    async def main() -> None:
        async with client_of(url) as client:
            events = client.stream("a red cube", steps=LONG_STEPS)
            async for event in events:
                if isinstance(event, Progress):
                    break
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.stop(events.request_id) in ("requested", "already_finished"), "it had been stopped"

    asyncio.run(main())
    wait_until_idle(service)


def test_a_timeout_frees_its_slot(service: Service, url: str) -> None:
    async def main() -> None:
        async with client_of(url) as client:
            with pytest.raises(RequestTimeoutError):
                await client.generate("a red cube", steps=LONG_STEPS, timeout_s=1.0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.generate("a red cube", steps=LONG_STEPS), 1.0)

    asyncio.run(main())
    wait_until_idle(service)


@pytest.mark.parametrize("how", ["left", "forgotten", "cancelled by the loop's end"])
def test_half_read_streams_leave_nothing(service: Service, url: str, how: str) -> None:
    client, tasks = client_of(url), []

    async def main() -> None:
        streams = [client.stream("a red cube", steps=LONG_STEPS) for _ in range(4)]
        for stream in streams:
            await anext(stream)
        if how == "left":
            for stream in streams:
                await stream.close()
            assert len(asyncio.all_tasks()) == 1
        elif how == "forgotten":
            streams.clear()
            del stream
            gc.collect()
            await asyncio.to_thread(wait_until_idle, service)
        else:
            tasks.extend(asyncio.ensure_future(anext(stream)) for stream in streams)
            await asyncio.sleep(0)

    asyncio.run(main())
    wait_until_idle(service)
    assert all(task.cancelled() for task in tasks)
    assert asyncio.run(client.generate("a red cube", steps=1)).cloud is not None, "in the next loop it works on"


def test_a_request_outlives_its_client(service: Service) -> None:
    options = {"seed": 3, "steps": 8, "formats": ["ply"]}

    async def begin() -> None:
        async with client_of(service.grpc_url) as client:
            handle = await client.submit("a red cube", request_id="outlives", **options)
            assert (await client.submit("a red cube", request_id="outlives", **options)).id == handle.id
            assert (await handle.status()) is not None
            async with handle.events() as events:
                await anext(events)

    async def end() -> None:
        async with client_of(service.grpc_url) as client:
            handle = await client.attach("outlives")
            result, expected = await handle.result(), await client.generate("a red cube", **options)
            assert result.assets == expected.assets and result.seed == 3
            assert (await handle.status()).phase == "finished"
            with pytest.raises(InvalidRequestError, match="another request has this id"):
                await client.submit("a blue cube", request_id="outlives", **options)
            with pytest.raises(RequestNotFoundError):
                await client.attach("nobody's")

    asyncio.run(begin())
    asyncio.run(end())


def test_a_submitted_request_can_be_cancelled(service: Service) -> None:
    async def main() -> None:
        async with client_of(service.grpc_url) as client:
            handle = await client.submit("a red cube", steps=LONG_STEPS)
            waiting = asyncio.ensure_future(handle.result())
            assert await handle.cancel() == "requested"
            with pytest.raises((RequestCancelledError, RequestNotFoundError)):
                await waiting

    asyncio.run(main())
    wait_until_idle(service)


def test_triton_without_the_edge_is_named(service: Service) -> None:
    with pytest.raises(ServerUnavailableError, match="Triton without an edge"):
        asyncio.run(client_of(service.supervisor.server.grpc_url).submit("a red cube"))


def test_every_stage_is_probed(url: str) -> None:
    status = asyncio.run(client_of(url).status(TIMEOUT_S))
    assert status.ready and {model.state for model in status.models} == {"READY"}


@pytest.mark.parametrize("page", ["client/README.md", "docs/api.md"])
def test_the_examples_of_the_pages_run(
    service: Service, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as printed but for the address."""
    code = "\n".join(re.findall("```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    assert "AsyncClient" in code and "localhost:8001" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("localhost:8001", service.grpc_url), page, "exec"), {})
    assert list(tmp_path.glob("*.ply"))


def test_requests_survive_a_restart_of_the_server(service: Service) -> None:
    """Behind the edge; they are answered once, and right."""

    async def main() -> list[np.ndarray]:
        async with AsyncClient(service.grpc_url, timeout_s=RESTART_S) as client:
            streams = [client.stream("a red cube", seed=seed, steps=60) for seed in range(4)]
            for stream in streams:
                await anext(stream)
            os.kill(service.supervisor.server.pid, signal.SIGKILL)
            results = []
            for stream in streams:
                *_, last = [event async for event in stream]
                results.append(last.result)
        return [result.cloud.to_array() for result in results]

    survived = asyncio.run(main())
    with Client(service.grpc_url, timeout_s=RESTART_S) as client:
        for seed, got in enumerate(survived):
            expected = client.generate("a red cube", seed=seed, steps=60)
            np.testing.assert_allclose(got, expected.cloud.to_array(), atol=1e-4)


def test_without_the_edge_a_death_is_an_error(service: Service) -> None:
    async def main() -> None:
        async with client_of(service.supervisor.server.grpc_url) as client:
            events = client.stream("a red cube", steps=LONG_STEPS)
            await anext(events)
            os.kill(service.supervisor.server.pid, signal.SIGKILL)
            with pytest.raises(ServerUnavailableError, match="went away"):
                async for _ in events:
                    pass

    run = service.supervisor.run_of("diffsplat")
    asyncio.run(main())
    wait_for(lambda: service.supervisor.run_of("diffsplat") not in (None, run))
