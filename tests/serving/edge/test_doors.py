"""Tokens, certificates and the log of requests, over real connections."""

import hashlib
import json
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from diffsplat.serving.edge.server import Edge, EdgeSettings
from diffsplat.serving.edge.service import Service
from diffsplat.serving.edge.tls import TlsFiles
from diffsplat.serving.errors import ServerStartError
from tests.serving.edge.scripted import PATIENCE_S, Away, request
from tests.serving.processes import wait_for

TOKEN = "correct-horse-battery-staple"
READY = pb.ServerReadyRequest()
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def stub_of(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    return path


def test_all_but_health_needs_a_token(tokens: Path) -> None:
    with Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(tokens=tokens)) as edge:
        with grpc.insecure_channel(edge.grpc_url) as channel:
            stub = stub_of(channel)
            assert stub.ServerLive(pb.ServerLiveRequest()).live and not stub.ServerReady(READY).ready
            for call in (
                lambda: list(stub.ModelStreamInfer(iter([request()]), timeout=PATIENCE_S)),
                lambda: stub.ModelInfer(request()),
                lambda: stub.ModelConfig(pb.ModelConfigRequest(name="diffsplat")),
            ):
                with pytest.raises(grpc.RpcError) as error:
                    call()
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with_token = [("authorization", f"Bearer {TOKEN}")]
            with pytest.raises(grpc.RpcError) as error:
                stub.ModelInfer(request(), metadata=with_token)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, "it has come in"


def test_every_request_is_one_line_without_its_prompt(tmp_path: Path, tokens: Path) -> None:
    log = tmp_path / "logs" / "requests.jsonl"
    with Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(tokens=tokens, request_log=log)) as edge:
        with grpc.insecure_channel(edge.grpc_url) as channel:
            with_token = [("authorization", f"Bearer {TOKEN}")]
            stream = stub_of(channel).ModelStreamInfer
            call = stream(iter([request("waits", PROMPT=b"a secret cube")]), metadata=with_token)
            wait_for(lambda: len(edge.jobs) == 1)
            call.cancel()
            wait_for(lambda: not edge.jobs)
            list(stream(iter([request("bad", model="a secret model")]), metadata=with_token))
    cancelled, refused = map(json.loads, log.read_text().splitlines())
    assert cancelled["request"] == "waits" and cancelled["client"] == "token:shop" and len(cancelled["id"]) == 32
    assert cancelled["end_state"] == "cancelled" and cancelled["error_type"] == "CANCELLED"
    assert cancelled["runs"] == 1 and cancelled["seconds"] >= 0 and cancelled["seconds_to_first_answer"] is None
    assert refused["request"] == "bad" and refused["end_state"] == "refused" and refused["error_type"] == "INVALID_ARG"
    assert "secret cube" not in log.read_text()


def test_prompts_are_logged_when_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(request_log=log, log_prompts=True)) as edge:
        with grpc.insecure_channel(edge.grpc_url) as channel:
            call = stub_of(channel).ModelStreamInfer(iter([request(PROMPT=b"a secret cube")]))
            wait_for(lambda: len(edge.jobs) == 1)
            call.cancel()
            wait_for(lambda: not edge.jobs)
    assert json.loads(log.read_text())["prompt"] == "a secret cube"


class Authority:
    """Certificates by openssl: of an authority, of the server at 127.0.0.1, and of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
        )
        self.sign("server", "127.0.0.1", "subjectAltName=IP:127.0.0.1")
        self.sign("client", "shop", "subjectAltName=DNS:shop")

    def sign(self, name: str, common_name: str, extension: str) -> None:
        (self.folder / "extensions").write_text(extension)
        self._openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={common_name}",
        )
        self._openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.pem",
            "-extfile",
            "extensions",
        )

    def files(self, client_ca: bool) -> TlsFiles:
        return TlsFiles(
            self.folder / "server.pem", self.folder / "server.key", self.folder / "ca.pem" if client_ca else None
        )

    def channel(self, url: str, *, certificate: bool) -> grpc.Channel:
        ca, key, pem = ((self.folder / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
        pair = (key, pem) if certificate else (None, None)
        return grpc.secure_channel(url, grpc.ssl_channel_credentials(ca, *pair))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    yield Authority(tmp_path_factory.mktemp("certificates"))


@needs_openssl
def test_connections_can_be_encrypted(authority: Authority) -> None:
    with Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(tls=authority.files(client_ca=False))) as edge:
        with authority.channel(edge.grpc_url, certificate=False) as channel:
            assert not stub_of(channel).ServerReady(READY, timeout=PATIENCE_S).ready
        with grpc.insecure_channel(edge.grpc_url) as channel, pytest.raises(grpc.RpcError) as error:
            stub_of(channel).ServerReady(READY, timeout=PATIENCE_S)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@needs_openssl
def test_clients_can_be_known_by_their_certificates(authority: Authority, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    settings = EdgeSettings(tls=authority.files(client_ca=True), request_log=log)
    with Edge(Away(), "127.0.0.1:1", settings=settings) as edge:
        with authority.channel(edge.grpc_url, certificate=False) as channel, pytest.raises(grpc.RpcError):
            stub_of(channel).ServerReady(READY, timeout=PATIENCE_S)
        with authority.channel(edge.grpc_url, certificate=True) as channel:
            bad = request(model="decode")
            (refused,) = stub_of(channel).ModelStreamInfer(iter([bad]), timeout=PATIENCE_S)
            assert refused.error_message.startswith("INVALID_ARG")
    assert json.loads(log.read_text())["client"] == "certificate:shop"


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "none.pem", tmp_path / "none.key")
    with pytest.raises(ServerStartError, match="none.key"):
        Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(tls=files)).start()


@needs_openssl
def test_the_http_front_has_the_same_doors(authority: Authority, tokens: Path) -> None:
    settings = EdgeSettings(tls=authority.files(client_ca=True), tokens=tokens)
    with Edge(Away(), "127.0.0.1:1", http_port=0, settings=settings) as edge:
        assert edge.http_url is not None and edge.http_url.startswith("https://")
        known = ssl.create_default_context(cafile=authority.folder / "ca.pem")
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{edge.http_url}/healthz", context=known, timeout=PATIENCE_S)
        known.load_cert_chain(authority.folder / "client.pem", authority.folder / "client.key")
        for address, code in (("/healthz", 503), ("/v1/splats/any", 401)):
            with pytest.raises(urllib.error.HTTPError) as answered:
                urllib.request.urlopen(f"{edge.http_url}{address}", context=known, timeout=PATIENCE_S)
            assert answered.value.code == code
            answered.value.close()


def test_a_service_whose_door_cannot_open_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    service = Service(tmp_path / "repository", settings=EdgeSettings(tokens=tmp_path / "missing"))
    assert list(tmp_path.iterdir())
    with pytest.raises(ServerStartError, match="missing"):
        service.start()
    assert not list(tmp_path.iterdir())
