"""Probes every stage of a server, since Triton calls a model ready whose process is dead or hangs.

The probe is a call without inputs. The stages after `denoise` answer it with nothing, as they do for every progress
message; the others refuse it, and a refusal shows as well that they respond.
"""

from typing import NamedTuple

from diffsplat_client.contract import ENSEMBLES, MODELS, RECONSTRUCT, RECONSTRUCTION
from diffsplat_client.runtime import BlockingTransport, run
from diffsplat_client.transport import AsyncResponseStream, AsyncTransport, Transport, TransportError

PROBE_ID = "probe"


class ModelStatus(NamedTuple):
    """One model of the server."""

    name: str
    version: str
    state: str  # READY, or UNAVAILABLE for one that is not loaded or whose process does not answer
    reason: str


class ServerStatus(NamedTuple):
    """What a server says about itself."""

    ready: bool  # the server takes requests and every stage answers
    models: list[ModelStatus]
    parameters: dict[str, str]  # the ensemble's: contract_version, bundle, ...; empty until it is loaded

    @property
    def contract_version(self) -> int | None:
        """The server's contract version; None if it does not name one."""
        text = self.parameters.get("contract_version", "")
        return int(text) if text.isascii() and text.isdigit() else None


async def probe_models(transport: AsyncTransport, timeout_s: float, *, reconstruction: bool) -> list[ModelStatus]:
    """State of every model; `reconstruction`: whether the server has the models for reconstructions."""
    names = [name for name in MODELS if reconstruction or name not in (RECONSTRUCT, RECONSTRUCTION)]
    # all at once: a dead stage takes a second to say so
    probes = {name: Probe(transport, name, timeout_s) for name in names if name not in ENSEMBLES}
    return [await _model_status(transport, name, probes.get(name), timeout_s) for name in names]


async def _model_status(transport: AsyncTransport, name: str, probe: "Probe | None", timeout_s: float) -> ModelStatus:
    try:
        versions = await transport.versions(name, timeout_s)
    except TransportError as error:
        if error.code == "UNAVAILABLE" and probe is None:
            raise
        return ModelStatus(name, "", "UNAVAILABLE", error.message)
    fault = "" if probe is None else await probe.wait()
    return ModelStatus(name, ",".join(versions), "UNAVAILABLE" if fault else "READY", fault)


def probe_stage(transport: Transport, model: str, timeout_s: float, version: str = "") -> str:
    """Why one stage is down, empty if it responds."""
    return run(Probe(BlockingTransport(transport), model, timeout_s, version).wait())


class Probe:
    """One call without inputs that has been sent, to the newest version by default."""

    def __init__(self, transport: AsyncTransport, model: str, timeout_s: float, version: str = "") -> None:
        self._timeout_s = timeout_s
        self._answer: AsyncResponseStream | None = None
        self._fault = ""
        try:
            self._answer = transport.stream(model, {}, PROBE_ID, timeout_s, version)
        except TransportError as error:
            self._fault = self._read(error)

    async def wait(self) -> str:
        """Wait for the answer; why the stage is down, empty if it responds."""
        try:
            while self._answer is not None and await self._answer.read() is not None:
                pass
        except TransportError as error:
            self._fault = self._read(error)
        return self._fault

    def _read(self, error: TransportError) -> str:
        if error.by_stage and error.code != "INTERNAL":
            return ""
        if error.code == "DEADLINE_EXCEEDED":
            return f"no answer within {self._timeout_s:g} s: the stage hangs, or is busy with long requests"
        return error.message
