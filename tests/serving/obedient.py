"""A small model that waits, hangs or computes as a request asks it to, in place of the stages."""

import contextlib
import threading

import numpy as np
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.transport import TransportError

from tests.serving.processes import TIMEOUT_S

WAIT, HANG, COMPUTE = 1.0, 2.0, 3.0  # what a request asks for; WAIT and COMPUTE end when the file `release` appears
WISH = "ETA"  # the tensor that says it: the edge lets inputs of the contract through, and adds a SEED to them
MODEL = f"""
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

from diffsplat.serving.drain import refuse_while_draining
from diffsplat.serving.stage_models.gauge import InFlightGauge

FOLDER = Path(__file__).parent
WISH = "{WISH}"


class TritonPythonModel:
    def initialize(self, args):
        if (FOLDER / "broken").exists():
            raise ValueError("broken on purpose")
        self.gauge = InFlightGauge("diffsplat", args["model_version"], args["model_instance_name"])

    def execute(self, requests):
        return [self.respond(pb_utils.get_input_tensor_by_name(request, WISH)) for request in requests]

    def respond(self, tensor):
        if tensor is not None:
            try:
                refuse_while_draining()
            except RuntimeError as error:
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"UNAVAILABLE: {{error}}"))
            with self.gauge:
                self.work(tensor.as_numpy().item())
        return pb_utils.InferenceResponse([])

    def work(self, wish):
        while not (FOLDER / "release").exists():
            if wish != {COMPUTE}:
                threading.Event().wait(None if wish == {HANG} else 0.001)
"""


def ask(grpc_url: str, wish: float, answers: list[object]) -> threading.Thread:
    """Send a request from a thread of its own; its answers, or the code of its error, go to `answers`."""

    def run() -> None:
        with contextlib.closing(GrpcTransport(grpc_url)) as wire:
            try:
                answers.extend(wire.stream("diffsplat", {WISH: np.array([wish], np.float32)}, "", TIMEOUT_S))
            except TransportError as error:
                answers.append(error.code)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
