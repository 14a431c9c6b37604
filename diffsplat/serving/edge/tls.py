"""Certificates of the edge."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from diffsplat.serving.errors import ServerStartError


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: of the server, with the chain up to its root.
        key: of that certificate, not encrypted.
        client_ca: roots of clients' certificates; with it a client without one is turned away.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. ServerStartError if a file cannot be read."""
        try:
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
            roots = None if self.client_ca is None else self.client_ca.read_bytes()
        except OSError as error:
            raise ServerStartError(f"TLS: {error}") from None
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)

    def ssl_context(self) -> ssl.SSLContext:
        """For the HTTP front, with the same meaning."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context
