"""How clients reach a server: tokens, encryption, keep-alive and proxies."""

import asyncio
import contextlib
import hashlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import AsyncClient, AuthenticationError, Client, InvalidRequestError, ServerUnavailableError
from diffsplat_client.cli import main
from diffsplat_client.connection import EDGE_KEEP_ALIVE_S, KEEP_ALIVE_TIMEOUT_S, Connection
from diffsplat_client.failures import request_error
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.runtime import BlockingRuntime
from diffsplat_client.transport import TransportError

from diffsplat.serving.edge.clients import ClientLimits
from diffsplat.serving.edge.server import Edge, EdgeSettings
from diffsplat.serving.edge.tls import TlsFiles
from tests.serving.edge.scripted import Away

TOKEN = "correct-horse-battery-staple"
PATIENCE_S = 60.0
NOT_READY = "is not ready"  # says an edge that was reached and has no server
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIFFSPLAT_TOKEN", *PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Edge]:
    """An edge that wants a token."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    with Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(tokens=tokens)) as edge:
        yield edge


@pytest.mark.parametrize(
    ("token", "says"), [(None, "wants a token: .*DIFFSPLAT_TOKEN"), ("x" * 20, "does not know this token")]
)
def test_a_client_without_the_right_token_stays_outside(guarded: Edge, token: str | None, says: str) -> None:
    with Client(guarded.grpc_url, token=token) as client, pytest.raises(AuthenticationError, match=says) as caught:
        client.status(PATIENCE_S)
    assert caught.value.error_type == "UNAUTHENTICATED" and "xxxx" not in str(caught.value)


def test_a_token_opens_the_door(guarded: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes in is told that no server is behind the edge."""
    with Client(guarded.grpc_url, token=TOKEN) as client, pytest.raises(ServerUnavailableError, match="127.0.0.1:1:"):
        client.status(PATIENCE_S)
    monkeypatch.setenv("DIFFSPLAT_TOKEN", TOKEN)
    with Client(guarded.grpc_url) as client, pytest.raises(ServerUnavailableError, match="127.0.0.1:1:"):
        client.status(PATIENCE_S)


def test_streams_carry_the_token(guarded: Edge) -> None:
    for token, code in ((None, "UNAUTHENTICATED"), (TOKEN, "INVALID_ARGUMENT")):
        transport = GrpcTransport(Connection(guarded.grpc_url, token))
        with pytest.raises(TransportError) as caught:
            list(transport.stream("no model", {}, "id", PATIENCE_S))
        transport.close()
        assert caught.value.code == code


def test_the_command_line_takes_a_token_from_a_file(guarded: Edge, tmp_path: Path, capsys) -> None:
    command = ["status", "--url", guarded.grpc_url, "--timeout", str(PATIENCE_S)]
    assert main(command) == 1 and "wants a token" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert main([*command, "--token-file", str(tmp_path / "token")]) == 1
    assert "127.0.0.1:1:" in capsys.readouterr().err, "it came in, and no server is behind the edge"
    assert main([*command, "--token-file", str(tmp_path / "missing")]) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a server at 127.0.0.1, signed by its own key; the key is key.pem beside it."""
    folder = tmp_path_factory.mktemp("certificate")
    arguments = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out server.pem -subj /CN=127.0.0.1"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *arguments.split(), *extension], cwd=folder, check=True, capture_output=True)
    return folder / "server.pem"


@needs_openssl
def test_connections_can_be_encrypted(certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    settings = EdgeSettings(tls=TlsFiles(certificate, key))
    with Edge(Away(), "127.0.0.1:1", settings=settings) as edge:
        with (
            Client(edge.grpc_url, ca_certificate=certificate) as client,
            pytest.raises(ServerUnavailableError, match=NOT_READY),
        ):
            client.generate("x")
        with Client(f"grpcs://{edge.grpc_url}") as client, pytest.raises(ServerUnavailableError, match="no server"):
            client.generate("x")  # signed by nobody known


@needs_openssl
def test_a_server_can_ask_for_a_certificate(certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    settings = EdgeSettings(tls=TlsFiles(certificate, key, client_ca=certificate))
    with Edge(Away(), "127.0.0.1:1", settings=settings) as edge:
        known = Client(edge.grpc_url, ca_certificate=certificate, client_certificate=(certificate, key))
        with known, pytest.raises(ServerUnavailableError, match=NOT_READY):
            known.generate("x")
        unknown = Client(edge.grpc_url, ca_certificate=certificate)
        with unknown, pytest.raises(ServerUnavailableError, match="no server answers"):
            unknown.generate("x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token": ""}, "^token: must be printable"),
        ({"token": "two words"}, "^token: must be printable"),
        ({"tls": False, "ca_certificate": "x"}, "tls = False"),
        ({"tls": False, "url": "grpcs://host:1"}, "tls = False"),
        ({"client_certificate": "x.pem"}, "two files"),
        ({"keep_alive_s": 0.5}, r"keep_alive_s = 0.5: must be in 1 \.\. 86400"),
        ({"keep_alive_s": float("nan")}, "keep_alive_s = nan"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        Client(**{"url": "host:1", **options})


def test_certificates_of_no_use_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    for name, says in (("none.pem", "cannot be read"), ("x.pem", "must be a PEM file")):
        with pytest.raises(InvalidRequestError, match=f"ca_certificate = .*{name}.*{says}"):
            Client("localhost:1", ca_certificate=tmp_path / name).status()


def test_a_token_is_not_shown() -> None:
    assert TOKEN not in repr(Connection("host:1", TOKEN))


def test_keep_alive_reaches_the_channel() -> None:
    options = dict(Connection("host:1", keep_alive_s=10).channel_options())
    assert options["grpc.keepalive_time_ms"] == 10_000
    assert dict(Connection("host:1").channel_options())["grpc.keepalive_time_ms"] >= 300_000, "Triton's limit"
    assert EDGE_KEEP_ALIVE_S + KEEP_ALIVE_TIMEOUT_S <= 20, "a network that has gone is noticed by then"


@pytest.mark.parametrize("is_edge", [True, False])
def test_an_edge_is_pinged_often_and_triton_seldom(server, is_edge: bool) -> None:
    server.is_edge = is_edge
    with Client(server.url) as client:
        made = []
        connect = client._runtime.connect
        client._runtime = BlockingRuntime()
        client._runtime.connect = lambda connection: made.append(connection.keep_alive_s) or connect(connection)
        for _ in range(3):
            client.generate("small")
            client._checked_at = None  # it looks again who is there
    assert made == ([EDGE_KEEP_ALIVE_S] if is_edge else [EDGE_KEEP_ALIVE_S, None])
    with Client(server.url, keep_alive_s=500) as client:
        client.generate("small")
        assert client.connection.keep_alive_s == 500


class DeadPath:
    """A way to a server that swallows everything from `cut` on, and closes nothing."""

    def __init__(self, url: str) -> None:
        self._target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.cut.is_set():
                    sink.sendall(data)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def dead_path(server) -> Iterator[DeadPath]:
    with contextlib.closing(DeadPath(server.url)) as path:
        yield path


def test_a_network_that_has_gone_is_noticed(dead_path: DeadPath) -> None:
    with Client(dead_path.url, keep_alive_s=1, timeout_s=10 * PATIENCE_S) as client:
        events = client.stream("hangs")
        next(events)
        dead_path.cut.set()
        with pytest.raises(ServerUnavailableError, match="went away"):
            next(events)


def test_a_network_that_has_gone_is_noticed_with_asyncio(dead_path: DeadPath) -> None:
    async def main() -> None:
        async with AsyncClient(dead_path.url, keep_alive_s=1, timeout_s=10 * PATIENCE_S) as client:
            events = client.stream("hangs")
            await anext(events)
            dead_path.cut.set()
            with pytest.raises(ServerUnavailableError, match="went away"):
                await anext(events)

    asyncio.run(main())


def test_a_request_that_is_too_large_is_named() -> None:
    """It never reaches Triton."""
    error = TransportError("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (300 vs. 100)")
    typed = request_error(error, Connection("host:1"), 5.0)
    assert isinstance(typed, InvalidRequestError) and "larger than the server takes" in str(typed)
    settings = EdgeSettings(limits=ClientLimits(max_request_bytes=1000))
    with Edge(Away(), "127.0.0.1:1", settings=settings) as edge:
        transport = GrpcTransport(edge.grpc_url)
        with pytest.raises(TransportError) as caught:
            list(transport.stream("diffsplat", {"IMAGE": np.array([bytes(2000)], np.object_)}, "id", PATIENCE_S))
        transport.close()
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "host:1", None),
        ({"http_proxy": "http://me:secret@proxy:3128"}, "host:1", "http_proxy = http://proxy:3128"),
        ({"http_proxy": "http://a:1", "grpc_proxy": "http://b:1"}, "host:1", "grpc_proxy = http://b:1"),
        ({"http_proxy": "http://a:1"}, "localhost:1", None),
        ({"http_proxy": "http://a:1", "no_proxy": "other, .corp"}, "host.corp:1", None),
        ({"http_proxy": "http://a:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3:1", None),
        ({"http_proxy": "http://a:1", "no_proxy": "10.0.0.0/8"}, "11.1.2.3:1", "http_proxy = http://a:1"),
    ],
)
def test_the_proxy_is_known(monkeypatch: pytest.MonkeyPatch, environment, url: str, proxy: str | None) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Connection(url).proxy() == proxy


def test_errors_name_the_proxy(fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    fake = fakes.transport()
    fake.ready = TransportError("UNAVAILABLE", "connection refused")
    says = r"no server answers at host:1 through the proxy https_proxy = http://proxy:3128 \(connection refused\)"
    with pytest.raises(ServerUnavailableError, match=says):
        Client("host:1", transport=fake).generate("x")
