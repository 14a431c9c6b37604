"""A server that speaks Triton's gRPC protocol over a real socket, and misbehaves on demand."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from diffsplat_client.contract import CONTRACT_VERSION, EDGE_HEADER
from diffsplat_client.probes import PROBE_ID
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

HANGS_S = 60.0  # longer than any wait of a test that goes well
DATATYPES = {"f": "FP32", "u": "UINT8", "O": "BYTES"}


def to_response(tensors: dict[str, np.ndarray]) -> pb.ModelStreamInferResponse:
    response = pb.ModelStreamInferResponse()
    for name, array in tensors.items():
        response.infer_response.outputs.add(name=name, datatype=DATATYPES[array.dtype.kind], shape=array.shape)
        content = array.tobytes() if array.dtype.kind != "O" else len(array[0]).to_bytes(4, "little") + array[0]
        response.infer_response.raw_output_contents.append(content)
    return response


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers according to the prompt; records requests, metadata and STOPs."""

    def __init__(self, fakes) -> None:
        self.fakes = fakes
        self.contract = str(CONTRACT_VERSION)
        self.is_edge = True
        self.peers: set[str] = set()
        self.requests: list[pb.ModelInferRequest] = []
        self.metadata: dict[str, str] = {}
        self.decode_says = "INVALID_ARG: LATENTS is missing"
        self.stopped = threading.Event()
        self.ended = threading.Event()
        self.hanging = threading.Event()  # grpc's blocking server may miss a cancel that comes before
        self.go = threading.Event()

    def ServerLive(self, request, context):
        if self.is_edge:
            context.send_initial_metadata(((EDGE_HEADER, "1"),))
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        self.peers.add(context.peer())
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):
        self.peers.add(context.peer())
        return pb.ModelReadyResponse(ready=True)

    def ModelConfig(self, request, context):
        response = pb.ModelConfigResponse()
        response.config.name = request.name
        response.config.parameters["contract_version"].string_value = self.contract
        return response

    def ModelMetadata(self, request, context):
        return pb.ModelMetadataResponse(name=request.name, versions=["1"])

    def ModelStreamInfer(self, requests, context):
        fakes = self.fakes
        for request in requests:
            if request.id == PROBE_ID:
                if request.model_name == "decode":
                    yield pb.ModelStreamInferResponse(error_message=self.decode_says)
                continue
            self.requests.append(request)
            if request.model_name == "denoise":
                self.stopped.set()
                yield to_response({"STOP_ANSWER": fakes.text(b"requested")})
                continue
            self.peers.add(context.peer())
            self.metadata = {key: value for key, value in context.invocation_metadata()}
            names = [tensor.name for tensor in request.inputs]
            prompt = request.raw_input_contents[names.index("PROMPT")][4:].decode()
            yield to_response(fakes.status("denoising", 1))
            if prompt == "invalid":
                text = "in ensemble 'diffsplat', INVALID_ARG: steps = 0: must be in 1 .. 200"
                yield pb.ModelStreamInferResponse(error_message=text)
            elif prompt == "refused":
                text = "[request id: 1] unexpected shape for input 'STEPS' for model 'diffsplat'. "
                yield pb.ModelStreamInferResponse(error_message=text)
            elif prompt == "fails":
                yield pb.ModelStreamInferResponse(error_message="in ensemble 'diffsplat', INTERNAL: decode failed")
            elif prompt == "stub":
                yield pb.ModelStreamInferResponse(error_message="Stub process 'decode_0_0' is not healthy.")
            elif prompt == "stopped":
                yield pb.ModelStreamInferResponse(error_message="in ensemble 'diffsplat', CANCELLED: stopped")
            elif prompt == "full":
                yield pb.ModelStreamInferResponse(error_message="OVERLOADED: 64 wait [retry_after_s=2.5]")
            elif prompt == "short":
                response = to_response(fakes.finished())
                response.infer_response.raw_output_contents[1] = b"123"
                yield response
            elif prompt == "waits":
                assert self.go.wait(HANGS_S)
            elif prompt == "hangs":
                if not context.add_callback(self.ended.set):  # it has ended already
                    self.ended.set()
                self.hanging.set()
                self.ended.wait(HANGS_S)
                return
            count = 5 if prompt.startswith("small") else 500_000
            yield to_response(fakes.finished(GAUSSIANS=np.ones((count, 14), np.float32)))


@contextlib.contextmanager
def served(servicer: Servicer) -> Iterator[Servicer]:
    """Let it listen, at its `url`."""
    with ThreadPoolExecutor(8) as pool:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]  # as Triton's
        server = grpc.server(pool, options=[*unlimited, ("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servicer.url, servicer.server = f"127.0.0.1:{port}", server
        yield servicer
        servicer.ended.set()
        server.stop(None).wait(5)
