"""Connection: where a server is, who the client is, and how the two speak: token, TLS, keep-alive, proxy."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from diffsplat_client.errors import InvalidRequestError

DEFAULT_URL = "localhost:8001"
TOKEN_VARIABLE = "DIFFSPLAT_TOKEN"
# Seconds between pings. Triton closes connections that are pinged more often than every 300 s without data; load
# balancers forget those that are silent for 350 s. An edge may be pinged every second.
TRITON_KEEP_ALIVE_S = 330.0
EDGE_KEEP_ALIVE_S = 10.0
KEEP_ALIVE_TIMEOUT_S = 8.0  # of the answer to a ping
_KEEP_ALIVE_RANGE_S = (1.0, 24 * 3600.0)
_LOOPBACK = ("localhost:", "127.", "[::1]:")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC takes the first that is set
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")

FilePath = str | os.PathLike[str]
Headers = tuple[tuple[str, str], ...]


class CertificateFiles(NamedTuple):
    """PEM files by which a client shows who it is."""

    certificate: FilePath  # with the chain up to its root
    key: FilePath  # of that certificate, not encrypted


@dataclass(frozen=True)
class Connection:
    """How to reach a server. InvalidRequestError when a field is wrong.

    Attributes:
        url: HOST:PORT of the server's gRPC port; `grpc://` may stand before it, or `grpcs://`, which means TLS.
        token: is sent with every call.
        tls: whether the connection is encrypted; None: when a certificate is given.
        ca_certificate: PEM file of the authorities that may have signed the server's certificate; None: the usual ones.
        client_certificate: certificate and key, for servers that ask for them.
        keep_alive_s: seconds between pings while requests run, by which a connection that broke silently is noticed;
            None: as seldom as Triton demands.
    """

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)
    tls: bool | None = None
    ca_certificate: FilePath | None = None
    client_certificate: tuple[FilePath, FilePath] | None = None
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        """Check every field; nothing is read or sent yet."""
        if self.tls is False and (self.ca_certificate is not None or self.client_certificate is not None):
            raise InvalidRequestError("tls = False: certificates need an encrypted connection")
        if self.tls is False and self.url.startswith("grpcs://"):
            raise InvalidRequestError(f"tls = False, url = {self.url!r}: grpcs:// means an encrypted connection")
        secure = self.url.startswith("grpcs://") or self.ca_certificate is not None
        object.__setattr__(self, "tls", bool(self.tls or secure or self.client_certificate is not None))
        object.__setattr__(self, "url", _check_url(self.url))
        if self.token is not None and not _is_token(self.token):
            raise InvalidRequestError("token: must be printable ASCII without spaces, and not empty")
        if self.client_certificate is not None:
            if isinstance(self.client_certificate, str) or len(self.client_certificate) != 2:
                raise InvalidRequestError("client_certificate: must be two files, the certificate's and its key's")
            object.__setattr__(self, "client_certificate", CertificateFiles(*self.client_certificate))
        shortest_s, longest_s = _KEEP_ALIVE_RANGE_S
        if self.keep_alive_s is not None and not shortest_s <= self.keep_alive_s <= longest_s:
            raise InvalidRequestError(
                f"keep_alive_s = {self.keep_alive_s:g}: must be in {shortest_s:g} .. {longest_s:g}"
            )

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, which gRPC then reaches without a proxy."""
        return self.url.startswith(_LOOPBACK)

    @property
    def metadata(self) -> Headers:
        """Headers of every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel_options(self) -> list[tuple[str, int]]:
        """Options of the gRPC channel."""
        every_s = TRITON_KEEP_ALIVE_S if self.keep_alive_s is None else self.keep_alive_s
        timeout_ms = round(1000 * KEEP_ALIVE_TIMEOUT_S)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # a new client tries again at once after another one failed
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", round(1000 * every_s)),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),  # the one above alone does nothing in grpc 1.85
            ("grpc.http2.max_pings_without_data", 0),  # as many as keep-alive needs
        ]
        if self.is_local:
            options.append(("grpc.enable_http_proxy", 0))  # connections to this machine never go through http_proxy
        return options

    def credentials(self) -> Any:
        """GRPC's channel credentials; None without TLS. InvalidRequestError for files of no use."""
        if not self.tls:
            return None
        import grpc

        roots = None if self.ca_certificate is None else _read_pem("ca_certificate", self.ca_certificate)
        key = certificate = None
        if self.client_certificate is not None:
            certificate, key = (_read_pem("client_certificate", file) for file in self.client_certificate)
        return grpc.ssl_channel_credentials(roots, key, certificate)

    def proxy(self) -> str | None:
        """The proxy that gRPC uses, as NAME = URL without its password; None without one."""
        found = next(((name, os.environ[name]) for name in _PROXIES if os.environ.get(name)), None)
        if self.is_local or found is None:
            return None
        host = self.url.rpartition(":")[0].strip("[]")
        exceptions = next((os.environ[name] for name in _NO_PROXIES if os.environ.get(name)), "")
        if any(_covers(entry.strip(), host) for entry in exceptions.split(",")):
            return None
        name, proxy = found
        parts = urlsplit(proxy)
        return f"{name} = {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}"


def token_from_environment() -> str | None:
    """The token in DIFFSPLAT_TOKEN, if there is one."""
    return os.environ.get(TOKEN_VARIABLE) or None


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of no_proxy means a host: the end of its name, or a network that it is in."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower())


def _is_token(token: object) -> bool:
    return isinstance(token, str) and token.isascii() and token.isprintable() and bool(token) and " " not in token


def _read_pem(name: str, file: FilePath) -> bytes:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{name} = {str(file)!r}: cannot be read ({error.strerror})") from None
    if b"-----BEGIN " not in content:
        raise InvalidRequestError(f"{name} = {str(file)!r}: must be a PEM file")
    return content


def _check_url(url: str) -> str:
    """HOST:PORT without a scheme."""
    address = url.removeprefix("grpc://").removeprefix("grpcs://").rstrip("/")
    host, _, port = address.rpartition(":")
    if "://" in address or "/" in address or not host or not port.isascii() or not port.isdigit():
        raise InvalidRequestError(f"url = {url!r}: must be HOST:PORT of the server's gRPC port, such as {DEFAULT_URL}")
    if not 1 <= int(port) <= 65535:
        raise InvalidRequestError(f"url = {url!r}: the port must be in 1 .. 65535")
    return address
