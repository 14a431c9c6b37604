"""Service: a supervised server with the edge in front of it, as `diffsplat serve` runs it."""

import dataclasses
import os
import threading
from typing import Any

from diffsplat.serving.edge.server import Edge, EdgeSettings
from diffsplat.serving.server.installation import check_address
from diffsplat.serving.server.ports import LOOPBACK, choose_ports
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.supervisor import Supervisor


class Service:
    """Clients reach the edge; Triton listens on loopback, for the edge and the supervisor.

    The edge listens from the start on, and says that it is not ready until the models are loaded.

    Args:
        repository, policy, options: as for Supervisor. A stage that is down is always loaded anew.
        grpc_port, http_port, edge_metrics_port: the edge's; 0 takes a free one, None leaves the last two off.
        address: IPv4 address of the edge and of the metrics.
        settings: how the edge treats clients.

    Attributes:
        supervisor: keeps Triton alive.
        edge: what clients reach.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        grpc_port: int = 0,
        http_port: int | None = None,
        edge_metrics_port: int | None = None,
        address: str = LOOPBACK,
        settings: EdgeSettings | None = None,
        policy: SupervisorPolicy | None = None,
        **options: Any,
    ) -> None:
        check_address(address, options.get("tritonserver"))
        ports = choose_ports({"gRPC": grpc_port, "Triton's gRPC": 0}, address, {"Triton's gRPC": LOOPBACK})
        inner = ports["Triton's gRPC"]
        policy = dataclasses.replace(policy or SupervisorPolicy(), reload_stages=True)
        self.supervisor = Supervisor(repository, grpc_port=inner, metrics_address=address, policy=policy, **options)
        self.edge = Edge(
            self.supervisor,
            f"{LOOPBACK}:{inner}",
            address=address,
            port=ports["gRPC"],
            http_port=http_port,
            metrics_port=edge_metrics_port,
            settings=settings,
        )

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        """Where this machine reaches it, without a scheme."""
        return self.edge.grpc_url

    @property
    def http_url(self) -> str | None:
        """Of the HTTP front, None without it."""
        return self.edge.http_url

    def start(self) -> None:
        """Start both and wait until every model is ready. Raises ServerStartError."""
        try:
            self.edge.start()
            self.supervisor.start()
        except BaseException:
            self.stop()
            raise

    def drain(self, give_up: threading.Event | None = None) -> bool:
        """Refuse new requests and wait until those in flight have been answered; whether they have.

        If the server dies meanwhile it is restarted, and they go on.
        """
        return self.edge.drain(self.supervisor.policy.drain_timeout_s, give_up)

    def stop(self) -> None:
        """Stop the edge, then the server. May be called twice."""
        self.edge.stop()
        self.supervisor.stop()
