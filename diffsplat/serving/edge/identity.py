"""Who a client is: by its token, else by its certificate, else by the host that it connects from."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffsplat.serving.errors import ServerStartError

_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+(?P<digest>[0-9a-fA-F]{64})")
_BEARER = "bearer "
MIN_TOKEN_CHARACTERS = 16  # shorter ones could be guessed from their hash


class TokenFile:
    """Names and SHA-256 digests of tokens, one client a line; read again when the file changes.

    Args:
        path: lines of NAME and 64 hexadecimal digits; empty lines and lines with # in front do not count.

    Raises:
        ServerStartError: it cannot be read, or a line of it is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = (0, 0)
        self._names: dict[bytes, str] = {}
        try:
            self._reread()
        except (OSError, ValueError) as error:
            raise ServerStartError(f"--tokens {path}: {error}") from None

    def name_of(self, token: str) -> str | None:
        """Whose token it is; None for nobody's. While the file cannot be read, what it said last holds."""
        try:
            self._reread()
        except (OSError, ValueError):
            pass
        if len(token) < MIN_TOKEN_CHARACTERS:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        return next((name for known, name in self._names.items() if hmac.compare_digest(known, digest)), None)

    def _reread(self) -> None:
        state = self._path.stat()
        if (stamp := (state.st_mtime_ns, state.st_size)) == self._stamp:
            return
        names = {}
        for number, line in enumerate(self._path.read_text().splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ValueError(f"line {number}: must be a name and the 64 hexadecimal digits of a SHA-256 digest")
            names[bytes.fromhex(match["digest"])] = match["name"]
        self._names, self._stamp = names, stamp


@dataclass(frozen=True)
class Doorman:
    """Tells clients apart. With `tokens`, those without one are nobody."""

    tokens: TokenFile | None = None

    def name_of(
        self, peer: str, headers: Iterable[tuple[str, str | bytes]], certificate: Mapping[str, Sequence[bytes]]
    ) -> str | None:
        """Name of a client; None for one that may not come in.

        Args:
            peer: gRPC's name of the connection, such as `ipv4:127.0.0.1:40000`.
            headers: of the call, names in lower case.
            certificate: gRPC's authentication context; empty without a client certificate.
        """
        if self.tokens is not None:
            value = next((str(value) for name, value in headers if name == "authorization"), "")
            if not value.lower().startswith(_BEARER):
                return None
            name = self.tokens.name_of(value[len(_BEARER) :].strip())
            return None if name is None else f"token:{name}"
        for common_name in certificate.get("x509_common_name", ()):
            return f"certificate:{common_name.decode(errors='replace')}"
        return host_of(peer)


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, without the port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
