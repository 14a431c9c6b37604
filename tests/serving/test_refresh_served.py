"""A running server changes to another bundle, and back, while clients use it: nothing is lost and nothing mixed."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import Client, Finished, Progress
from diffsplat_client.generation import Generation
from diffsplat_client.stream import GenerationStream

from benchmarks.refresh import ONE_PROMPT, REQUEST, ClosedLoop, changed_bundle
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.integrity import BundleError
from diffsplat.pipeline import Pipeline
from diffsplat.serving.repository.versions import list_versions, served_version
from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.supervisor import Supervisor
from export import gates
from export.common import ExportError
from export.gates import GateError, GateOptions
from export.refresh import Refreshed, refresh, roll_back
from export.repository import export_repository
from tests.conftest import PICO
from tests.serving.processes import TIMEOUT_S, wait_for
from tests.serving.repositories import use_one_process_per_stage
from training.__main__ import main as train

pytestmark = pytest.mark.triton

CLIENTS = 2
PAUSE_S = 0.1  # between the requests of a client, so that versions can load meanwhile


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return changed_bundle(open_bundle(PICO), tmp_path_factory.mktemp("bundles") / "other", 0.99)


@pytest.fixture(scope="module")
def repository(pico_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ONNX Runtime, whose stages start fastest, with one process for each."""
    folder = shutil.copytree(pico_repository, tmp_path_factory.mktemp("served") / "pico")
    return use_one_process_per_stage(Path(folder))  # a refresh keeps what an operator has edited


class Events:
    """What the supervisor said, and what a test does, at once, when it says something."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.actions: dict[str, Callable[[], None]] = {}

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if action := self.actions.pop(line, None):
            action()


@pytest.fixture(scope="module")
def events() -> Events:
    return Events()


@pytest.fixture(scope="module")
def supervisor(repository: Path, events: Events, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with Supervisor(repository, policy=SupervisorPolicy(drain_timeout_s=TIMEOUT_S), on_event=events) as supervisor:
            yield supervisor
            assert supervisor.restarts == 0, events.lines


def last_of(stream: GenerationStream) -> Generation:
    (result,) = [event.result for event in stream if isinstance(event, Finished)]
    return result


def test_requests_are_neither_lost_nor_mixed(
    supervisor: Supervisor, events: Events, repository: Path, other: Bundle
) -> None:
    """Clients ask on; one long request finishes on the old version, and a STOP reaches another one there."""
    truths = {1: Pipeline.load(repository, "1", threads=1).generate(REQUEST).gaussians}
    url, lines = supervisor.server.grpc_url, []
    with (
        Client(url, timeout_s=TIMEOUT_S) as client,
        ClosedLoop(url, CLIENTS, PAUSE_S) as load,
        ThreadPoolExecutor(1) as reader,
    ):
        streams: list[GenerationStream] = []
        answers: list[Generation | Future[Generation]] = []

        def start() -> None:
            for seed in (1, 2):
                streams.append(client.stream("a red cube", seed=seed, steps=200))
                assert any(isinstance(event, Progress) for event in streams[-1])
            answers.append(reader.submit(last_of, streams[0]))

        def stop_one_and_ask() -> None:
            streams[1].close()  # it runs on version 1, while version 2 is the newest
            answers.append(client.generate(REQUEST))

        events.actions = {
            "changing from version 1 to version 2": load.start,
            "version 2 is loaded": start,
            "version 2 serves": stop_one_and_ask,
        }
        assert refresh(other.root, repository, ONE_PROMPT, report=lines.append) == Refreshed("2", "1", servers=1)
        kept, after = answers
        assert isinstance(kept, Future) and isinstance(after, Generation)
        finished = kept.result()
    assert not load.errors
    assert finished.served is not None and finished.served.version == 1
    assert after.served == (2, "pico", other.digest)
    assert f"request {streams[1].request_id}: stop asked for, requested" in supervisor.server.log_path.read_text()
    assert any(line.startswith("version 1 finishes ") for line in lines) and lines[-1] == "version 1 is unloaded"
    truths[2] = Pipeline.load(repository, "2", threads=1).generate(REQUEST).gaussians
    seen = set()
    for result in [*(answer.result for answer in load.answers), after]:
        assert result.served is not None
        seen.add(result.served.version)
        truth = truths[result.served.version]
        assert truth is not None
        np.testing.assert_allclose(result.cloud.to_array(), truth, atol=1e-3)
    assert seen == {1, 2}
    assert truths[1].shape != truths[2].shape or np.abs(truths[1] - truths[2]).max() > 0.05
    wait_for(lambda: {stub.version for stub in find_stubs(supervisor.server.pid)} == {"2"})
    assert served_version(repository) == "2" and list_versions(repository) == ["1", "2"]


def test_roll_back_is_one_call(supervisor: Supervisor, repository: Path, other: Bundle) -> None:
    if served_version(repository) == "1":  # alone, without the test above
        refresh(other.root, repository, ONE_PROMPT)
    assert roll_back(repository) == Refreshed("1", "2", servers=1)
    with Client(supervisor.server.grpc_url, timeout_s=TIMEOUT_S) as client:
        served = client.generate(REQUEST).served
        assert served is not None and served.version == 1 and served.bundle_digest == open_bundle(PICO).digest
    assert served_version(repository) == "1"


def test_a_version_that_does_not_load_is_not_served(
    supervisor: Supervisor, events: Events, repository: Path, other: Bundle
) -> None:
    """A stage is damaged on disk: the server says which, unloads what it has loaded, and goes on."""
    if "2" not in list_versions(repository):
        refresh(other.root, repository, ONE_PROMPT)
        roll_back(repository)
    (repository / "denoise" / "2" / "model.py").write_text("raise RuntimeError\n")
    with pytest.raises(ExportError, match="version 2 is not served: denoise version 2 was not loaded"):
        roll_back(repository, "2")
    assert events.lines[-1].startswith("version 2 is not served: denoise version 2 was not loaded")
    wait_for(lambda: {stub.version for stub in find_stubs(supervisor.server.pid)} == {"1"})
    with Client(supervisor.server.grpc_url, timeout_s=TIMEOUT_S) as client:
        served = client.generate(REQUEST).served
        assert served is not None and served.version == 1
    assert served_version(repository) == "1"


def test_gates_name_themselves_and_change_nothing(
    other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server runs here. Empty objects, none, a command that fails, another backbone, numbers unlike torch's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    repository = export_repository(PICO, tmp_path / "pico", "torch").folder  # which exports at once
    empty = changed_bundle(open_bundle(PICO), tmp_path / "empty", 0.0)
    with pytest.raises(GateError, match=r"gate 'objects': the object of 'a red cube' has \d+ visible splats"):
        refresh(empty.root, repository, ONE_PROMPT)
    broken = changed_bundle(open_bundle(PICO), tmp_path / "broken", float("nan"))
    with pytest.raises(
        GateError, match="gate 'objects': there is no object of 'a red cube': TEXT_EMBEDDINGS holds nan"
    ):
        refresh(broken.root, repository, ONE_PROMPT)
    command = GateOptions(ONE_PROMPT.prompts, quality_command="test -d {bundle}/nothing")
    with pytest.raises(GateError, match="gate 'quality': `test -d .*other/nothing` ended with code 1"):
        refresh(other.root, repository, command)
    with monkeypatch.context() as patch:
        patch.setitem(gates.LEAST_PSNR_DB, "fp32", 1000.0)
        with pytest.raises(GateError, match=r"gate 'parity': frames of 'a red cube' are \d+\.\d dB from torch's"):
            refresh(other.root, repository, ONE_PROMPT)
    with pytest.raises(GateError, match="gate 'bundle': it is of backbone nano, .* serves pico"):
        refresh(PICO.parent / "nano", repository, ONE_PROMPT)
    with pytest.raises(BundleError, match="holds no version before 1, only 1"):
        roll_back(repository)
    assert served_version(repository) == "1" and list_versions(repository) == ["1"]
    assert refresh(PICO, repository, ONE_PROMPT) == Refreshed("1", "1", servers=0)
    command = ["bundle", "--sources", str(other.root), "--out", str(tmp_path / "bundle")]
    assert train([*command, "--export-to", str(repository)]) == 0, "training refreshes by the same function"
    assert served_version(repository) == "2" and list_versions(repository) == ["1", "2"]
