"""The same inputs, sent to a running service: every call ends, and nothing is the service's fault."""

import contextlib
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
from diffsplat_client.error_text import StageError
from diffsplat_client.status import find_early_end, parse_status
from diffsplat_client.tensor_bytes import from_bytes
from tritonclient.grpc import service_pb2 as pb

from benchmarks.fuzz.checks import REFUSED, TAKEN

TIMEOUT_S = 300.0  # of a call that must end long before
LISTEN_S = 0.02  # for an answer to garbage, which need not get one
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_OURS = ("INTERNAL", "UNAVAILABLE")  # error types that name a fault of the service
_CODES = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")  # of calls that carry no request


class ServedFuzz:
    """Checks against one service.

    Args:
        grpc_url, http_url: where its edge listens.
    """

    def __init__(self, grpc_url: str, http_url: str) -> None:
        self._grpc_url, self._http_url = grpc_url, http_url
        self._channel = grpc.insecure_channel(grpc_url, [("grpc.max_receive_message_length", -1)])
        self._stream = self._channel.stream_stream(_STREAM)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def message(self, data: bytes) -> str:
        """One message on a stream of its own; its answers are a result, or say what is wrong with the request."""
        outcome = TAKEN
        try:
            for answer in self._stream(iter([data]), timeout=TIMEOUT_S):
                if (error_type := _error_type(pb.ModelStreamInferResponse.FromString(answer))) is not None:
                    assert error_type not in _OURS, answer
                    outcome = REFUSED
        except grpc.RpcError as error:
            assert error.code().name in _CODES, error
            return REFUSED
        return outcome

    def http_body(self, body: bytes) -> str:
        """A body of the HTTP front. What is accepted is followed to its end."""
        answer = self._http("POST", "/v1/splats", body)
        if answer is None:
            return REFUSED
        (events_url,) = re.findall(r'"events_url": "([^"]*)"', answer)
        events = self._http("GET", events_url) or ""
        last = re.findall(r"event: (\w+)\ndata: (.*)", events)[-1]
        assert last[0] != "running" and '"error_type": "INTERNAL"' not in last[1], last
        return TAKEN if last[0] == "finished" else REFUSED

    def garbage(self, data: bytes) -> str:
        """Bytes to both ports; a connection that is dropped in the middle."""
        for url in (self._grpc_url, self._http_url.removeprefix("http://")):
            host, _, port = url.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
                connection.settimeout(LISTEN_S)
                with contextlib.suppress(OSError):  # it may be closed before all is sent
                    connection.sendall(data)
                    head = connection.recv(64)
                    assert not re.match(rb"HTTP/1.\d 5", head) or head.startswith(b"HTTP/1.1 501"), head
        return REFUSED

    def _http(self, method: str, path: str, body: bytes | None = None) -> str | None:
        """The answer's text; None if the request was refused."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._http_url + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                assert error.code < 500, (error.code, error.read())
            return None


def _error_type(answer: Any) -> str | None:
    """What went wrong according to one answer; None if nothing did."""
    if answer.error_message:
        said = StageError.from_text(answer.error_message)
        assert said is not None, f"an error without a type: {answer.error_message}"
        return said.error_type
    response = answer.infer_response
    tensors = {
        output.name: from_bytes(output.datatype, output.shape, content)
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    end = find_early_end(tensors)
    if end is None and "STATUS" in tensors:
        end = parse_status(tensors["STATUS"]).early_end
    return None if end is None else end.error_type


@contextlib.contextmanager
def served(grpc_url: str, http_url: str) -> Iterator[ServedFuzz]:
    """Checks against a service, until the end of the block."""
    fuzz = ServedFuzz(grpc_url, http_url)
    try:
        yield fuzz
    finally:
        fuzz.close()
