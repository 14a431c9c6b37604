"""Heals one stage of a running server: its processes are replaced, and the other stages work on meanwhile.

Measured with Triton 2.51: a model whose configuration changed gets new processes, the ensembles that use it are bound
to them without a moment in which requests are refused, and the server lives on although the stage's own requests never
end. Those the edge sends again (`edge/jobs.py`).
"""

import threading

from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.transport import TransportError

from diffsplat.serving.server.processes import find_stubs, kill
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.model_control import LoadError, load_model

_ANSWER_S = 2.0  # a server that works says within this time that it is ready


def reload_stage(server: TritonServer, model: str, pid: int | None, stopping: threading.Event) -> None:
    """Replace the processes of a stage that is down.

    Args:
        server: it runs.
        model: the stage.
        pid: the process that died or hangs; None: all of them. Others answer until the new ones do.
        stopping: ends the wait when it is set.

    Raises:
        LoadError: the server does not answer, or did not load the stage again.
    """
    transport = GrpcTransport(server.grpc_url)
    try:
        if not transport.server_ready(_ANSWER_S):
            raise LoadError("the server is not ready")
    except TransportError as error:
        raise LoadError(f"the server does not answer: {error}") from None
    finally:
        transport.close()
    old = {stub.pid for stub in find_stubs(server.pid) if stub.model == model}
    kill(old if pid is None else old & {pid})
    try:
        server.copy.renew_stage(model)
    except OSError as error:
        raise LoadError(f"{server.copy.folder}: {error}") from None
    load_model(server, model, stopping)
    kill(old)  # Triton would keep them for requests that never end
