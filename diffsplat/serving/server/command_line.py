"""The command line of tritonserver, and the key that opens its restricted protocols."""

from pathlib import Path

from diffsplat.serving.server.installation import Installation, link_backend
from diffsplat.serving.server.workspace import Workspace

STOP_TIMEOUT_S = 5  # Triton waits this long for requests in flight
STUB_TIMEOUT_S = 240  # a model's process must have loaded its network by then

_KEY_NAME = "control"
_RESTRICTED_PROTOCOLS = ("shared-memory", "model-repository", "trace", "logging")  # Triton's names, gRPC's and HTTP's


def key_headers(control_key: str) -> dict[str, str]:
    """The gRPC metadata that opens the restricted protocols."""
    return {f"triton-grpc-protocol-{_KEY_NAME}": control_key}


def server_command(
    installation: Installation,
    workspace: Workspace,
    repository: Path,
    address: str,
    metrics_address: str,
    ports: dict[str, int],
    control_key: str,
) -> list[str]:
    """The executable and its options.

    Args:
        installation: which tritonserver; its Python backend is linked into the workspace.
        workspace: marks its files.
        repository: the copy that it reads.
        address: of gRPC and HTTP.
        metrics_address: of the metrics.
        ports: of "gRPC", "metrics" and, unless it is off, "HTTP".
        control_key: what restricted protocols need.
    """
    restricted = ",".join(_RESTRICTED_PROTOCOLS)
    command = [
        str(installation.server),
        f"--model-repository={repository}",
        f"--backend-directory={link_backend(installation, workspace.folder)}",
        f"--backend-config=python,shm-region-prefix-name={workspace.prefix}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        "--disable-auto-complete-config",  # completing them would start one more interpreter per model
        "--model-control-mode=explicit", "--load-model=*",
        "--strict-readiness=false",  # stays ready while a version of a model is loaded or unloaded
        f"--grpc-address={address}", f"--grpc-port={ports['gRPC']}",
        f"--grpc-restricted-protocol={restricted}:{_KEY_NAME}={control_key}",
        f"--metrics-address={metrics_address}", f"--metrics-port={ports['metrics']}",
        f"--exit-timeout-secs={STOP_TIMEOUT_S}",
        "--log-format=ISO8601",
    ]  # fmt: skip
    if "HTTP" not in ports:
        return [*command, "--allow-http=false"]
    return [
        *command, f"--http-address={address}", f"--http-port={ports['HTTP']}",
        f"--http-restricted-api={restricted}:{_KEY_NAME}={control_key}",
    ]  # fmt: skip
