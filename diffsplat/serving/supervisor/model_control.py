"""Lets a running Triton look at a model's folder again: it loads what is new or changed there, and unloads the rest."""

import threading
from typing import Any

from diffsplat.serving.server.server import START_TIMEOUT_S, TritonServer

_POLL_S = 0.1


class LoadError(RuntimeError):
    """The server did not load the model; the message is one line."""


def load_model(server: TritonServer, name: str, stopping: threading.Event | None = None) -> None:
    """Returns when what is new serves. What it replaces finishes its requests first, which is not waited for.

    Args:
        server: it runs.
        name: of the model.
        stopping: ends the wait when it is set.

    Raises:
        LoadError: what is new cannot be loaded, the server died, or `stopping` was set.
    """
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.RepositoryModelLoadRequest(model_name=name)
    with grpc.insecure_channel(server.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.RepositoryModelLoad.future(
            request, metadata=[*server.control_headers.items()], timeout=START_TIMEOUT_S
        )
        while True:
            try:
                call.result(timeout=_POLL_S)
            except grpc.FutureTimeoutError:
                if stopping is not None and stopping.is_set():
                    call.cancel()
                    raise LoadError("it is being stopped") from None
            except grpc.RpcError as error:
                raise LoadError(_first_line(error)) from None
            else:
                return


def _first_line(error: Any) -> str:
    return str(error.details() or error.code().name).strip().splitlines()[0]
