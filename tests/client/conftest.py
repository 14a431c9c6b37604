"""A transport without a wire: scripted responses, and a record of all calls."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from diffsplat_client.contract import CONTRACT_VERSION, ENSEMBLE, STOP_MODEL
from diffsplat_client.probes import PROBE_ID
from diffsplat_client.transport import Tensors, TransportError

if TYPE_CHECKING:
    from tests.client.protocol_server import Servicer

PATIENCE_S = 60.0  # longer than any wait of a test that passes
Script = list[Tensors | BaseException]


def text(value: object) -> np.ndarray:
    """A BYTES [1] tensor."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    array = np.empty(1, np.object_)
    array[0] = data
    return array


def status(phase: str, step: int = 0, **more: object) -> Tensors:
    values = {"phase": phase, "step": step, "steps": 3, "queue_position": 0, "seed": 7, "elevation_deg": 10.0}
    return {"STATUS": text({**values, "warnings": [], "seconds_left": None, **more})}


def texts(*values: bytes) -> np.ndarray:
    """A BYTES [N] tensor."""
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def files(**assets: bytes) -> Tensors:
    """Files of a result, by their formats."""
    return {"ASSETS": texts(*assets.values()), "ASSET_FORMATS": texts(*map(str.encode, assets))}


def splats(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).random((count, 14), dtype=np.float32)


def finished(**tensors: np.ndarray) -> Tensors:
    """The last response of a generation that requested only splats."""
    return {
        **status("finished", 3, warnings=["prompt cut"]),
        "GAUSSIANS": splats(),
        "TIMINGS": text({"encode": 1.5, "denoise": 30}),
        "TIMINGS_DECODE": text({"decode": 4}),
        "TIMINGS_PACKAGE": text({"package": 0.5}),
        **tensors,
    }


class FakeStream:
    """Plays a script; blocks at its end when `block` is set, until it is cancelled."""

    def __init__(self, script: Script, block: bool) -> None:
        self.script = iter(script)
        self.block = block
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        if not self.cancelled.is_set():
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                return item
            if not self.block:
                raise StopIteration
            assert self.cancelled.wait(PATIENCE_S), "nobody cancelled the stream"
        raise TransportError("CANCELLED", "Locally cancelled by application!")

    def cancel(self) -> None:
        self.cancelled.set()


class FakeTransport:
    """Answers `generate` with a script; `calls` are (model, tensors, request_id, timeout_s)."""

    def __init__(self, *script: Tensors | BaseException, block: bool = False) -> None:
        self.script = list(script)
        self.block = block
        self.ready: bool | TransportError = True
        self.down: set[str] = set()  # models that are not ready
        self.config: dict[str, str] | TransportError = {"contract_version": str(CONTRACT_VERSION), "bundle": "pico"}
        self.calls: list[tuple[str, Tensors, str, float]] = []
        self.streams: list[FakeStream] = []
        self.questions = 0
        self.closed = False
        self.edge = True
        self.sent_parameters: list[dict[str, str | bool] | None] = []  # of every request
        self.stop_error: TransportError | None = None
        self.stop_answer = "requested"
        self.stage_faults: dict[str, TransportError] = {}  # answers to probes

    def server_ready(self, timeout_s: float) -> bool:
        self.questions += 1
        if isinstance(self.ready, TransportError):
            raise self.ready
        return self.ready

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return self.server_ready(timeout_s) and model not in self.down

    def versions(self, model: str, timeout_s: float) -> list[str]:
        if self.ready is not True:
            raise TransportError("NOT_FOUND", "bundle\nis damaged")
        return ["1"]

    def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        assert model == ENSEMBLE
        if isinstance(self.config, TransportError):
            raise self.config
        return self.config

    def keeps_requests(self, timeout_s: float) -> bool:
        return self.edge

    def stream(
        self, model: str, tensors: Tensors, request_id: str, timeout_s: float, version: str = "", parameters=None
    ) -> FakeStream:
        self.sent_parameters.append(parameters)
        if request_id == PROBE_ID:
            fault = self.stage_faults.get(model)
            return FakeStream([fault] if fault else [{}], block=False)
        self.calls.append((model, tensors, request_id, timeout_s))
        if model == STOP_MODEL:
            if self.stop_error:
                raise self.stop_error
            return FakeStream([{"STOP_ANSWER": text(self.stop_answer.encode())}], block=False)
        self.streams.append(FakeStream(self.script, self.block))
        return self.streams[-1]

    def close(self) -> None:
        self.closed = True

    @property
    def stopped(self) -> list[str]:
        """Ids of the requests that a STOP was sent for."""
        stops = [(tensors, request_id) for model, tensors, request_id, _ in self.calls if model == STOP_MODEL]
        assert all(set(tensors) == {"STOP"} and tensors["STOP"].all() for tensors, _ in stops)
        return [request_id for _, request_id in stops]

    @property
    def request_id(self) -> str:
        (request_id,) = [request_id for model, _, request_id, _ in self.calls if model == ENSEMBLE]
        return request_id


class Fakes:
    """Helpers to build transports."""

    transport = FakeTransport
    status = staticmethod(status)
    finished = staticmethod(finished)
    splats = staticmethod(splats)
    text = staticmethod(text)
    files = staticmethod(files)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's monotonic clock, which only the test advances."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def fakes() -> type[Fakes]:
    return Fakes


@pytest.fixture
def server(fakes) -> Iterator["Servicer"]:
    """A server on a real socket."""
    from tests.client.protocol_server import Servicer, served

    with served(Servicer(fakes)) as servicer:
        yield servicer


@pytest.fixture
def serve_fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTransport], FakeTransport]:
    """Make every client that gets only an address use this transport."""

    def serve(transport: FakeTransport) -> FakeTransport:
        monkeypatch.setattr("diffsplat_client.grpc_transport.GrpcTransport", lambda connection: transport)
        return transport

    return serve
