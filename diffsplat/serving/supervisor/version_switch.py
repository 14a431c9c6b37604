"""Changes a running server over from one version of its repository to another, without losing a request.

    1. load the new version of every stage beside the old one
    2. bind the ensembles to it: requests that arrive from now on meet the new version in all stages
    3. wait until the old version has finished its requests, then unload it

A request keeps the version it began with, since an ensemble names the versions of its stages and Triton lets the
requests of a replaced ensemble finish. Measured with Triton 2.51: a model that gets another version is not reloaded,
and an ensemble is replaced without a moment in which requests are refused.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.probes import probe_stage

from diffsplat.serving.repository.copy import is_ensemble, read_configs
from diffsplat.serving.server.processes import Stub, find_stubs, kill
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.model_control import LoadError, load_model

_IDLE_CHECKS, _IDLE_CHECK_S = 5, 0.2  # a request on its way between two stages is not counted for a moment
_PROBE_TIMEOUT_S = 30.0
_UNLOAD_S = 10.0  # processes of a version that nobody uses have ended long before

Report = Callable[[str], None]


def stubs_of(server_pid: int, version: str, models: Sequence[str]) -> list[Stub]:
    """Processes of one version of some models."""
    return [stub for stub in find_stubs(server_pid) if stub.version == version and stub.model in models]


class SwitchError(RuntimeError):
    """The server goes on with the version it had; the message says why."""


class VersionSwitch:
    """One change of version of a running server.

    Args:
        server: it runs.
        version: the new one; its folders are in the repository.
        report: called with one line per step.
    """

    def __init__(self, server: TritonServer, version: str, report: Report) -> None:
        assert server.version
        self.server = server
        self.old, self.new = server.version, version
        self._report = report
        configs = read_configs(server.repository, version)
        self._stages = [name for name, config in configs.items() if not is_ensemble(config)]
        self._ensembles = {name: config for name, config in configs.items() if is_ensemble(config)}

    def load(self) -> None:
        """Load the new version of every stage and probe it; the old one serves meanwhile.

        Raises:
            SwitchError: a stage did not load or does not answer. The server is left as it was.
        """
        try:
            for name in self._stages:
                self._report(f"loading {name} version {self.new}")
                self.server.copy.add_stage(name, self.new)
                self._load_model(name)
            self._probe()
        except SwitchError:
            self._drop(self.new)
            raise

    def bind(self) -> None:
        """Let requests that arrive from now on use the new version.

        Raises:
            SwitchError: an ensemble was refused. The server is left as it was.
        """
        try:
            self._bind(self._ensembles)
        except SwitchError:
            old = read_configs(self.server.repository, self.old)
            self._bind({name: config for name, config in old.items() if is_ensemble(config)})
            self._drop(self.new)
            raise
        self.server.version = self.new
        self._report(f"version {self.new} serves")

    def retire(self, give_up: Callable[[], bool]) -> bool:
        """Wait until the old version is idle, then unload it; False if `give_up` said so before."""
        idle, reported = 0, -1
        while idle < _IDLE_CHECKS:
            if give_up() or not self.server.running:
                return False
            left = self.server.requests_in_flight(self.old)
            idle = idle + 1 if left == 0 else 0
            if left and left != reported:
                reported = left
                self._report(f"version {self.old} finishes {left} request{'s' if left > 1 else ''}")
            time.sleep(_IDLE_CHECK_S)
        self._drop(self.old)
        deadline_s = time.monotonic() + _UNLOAD_S
        while stubs := stubs_of(self.server.pid, self.old, self._stages):
            if give_up() or not self.server.running:
                return False
            if time.monotonic() > deadline_s:  # one that died took a probe with it, for which Triton waits
                kill(stub.pid for stub in stubs)
            time.sleep(_IDLE_CHECK_S)
        self._report(f"version {self.old} is unloaded")
        return True

    def _bind(self, ensembles: dict[str, Any]) -> None:
        for name, config in ensembles.items():
            self.server.copy.write_config(name, config)
            self._load_model(name)

    def _drop(self, version: str) -> None:
        """Unload a version of all stages; Triton waits for the requests in it."""
        for name in self._stages:
            self.server.copy.drop_stage(name, version)
            self._load_model(name, must=False)

    def _probe(self) -> None:
        transport = GrpcTransport(self.server.grpc_url)
        try:
            for name in self._stages:
                if fault := probe_stage(transport, name, _PROBE_TIMEOUT_S, self.new):
                    raise SwitchError(f"{name} version {self.new} does not answer: {fault}")
        finally:
            transport.close()

    def _load_model(self, name: str, must: bool = True) -> None:
        try:
            load_model(self.server, name)
        except LoadError as error:
            if must:
                raise SwitchError(f"{name} version {self.new} was not loaded: {error}") from None
