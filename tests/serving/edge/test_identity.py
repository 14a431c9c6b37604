"""Who a client is, and who may not come in."""

import hashlib
import os
from pathlib import Path

import pytest

from diffsplat.serving.edge.identity import Doorman, TokenFile
from diffsplat.serving.errors import ServerStartError

TOKEN = "correct-horse-battery-staple"
PEER = "ipv4:10.0.0.7:40000"


def line(name: str, token: str) -> str:
    return f"{name} {hashlib.sha256(token.encode()).hexdigest()}\n"


def doorman(tmp_path: Path, text: str) -> Doorman:
    path = tmp_path / "tokens"
    path.write_text(text)
    return Doorman(TokenFile(path))


def test_a_token_names_its_client(tmp_path: Path) -> None:
    known = doorman(tmp_path, f"# apps\n\n{line('shop', TOKEN)}{line('demo', TOKEN + '2')}")
    assert known.name_of(PEER, [("x", "y"), ("authorization", f"Bearer {TOKEN}")], {}) == "token:shop"
    assert known.name_of("ipv4:10.0.0.8:1", [("authorization", f"bearer {TOKEN}2")], {}) == "token:demo"


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}x", "Bearer ", TOKEN, f"Basic {TOKEN}", "Bearer short"])
def test_without_one_nobody_comes_in(tmp_path: Path, header: str) -> None:
    known = doorman(tmp_path, line("shop", TOKEN) + line("short", "short"))
    assert known.name_of(PEER, [("authorization", header)], {"x509_common_name": [b"shop"]}) is None
    assert known.name_of(PEER, [], {}) is None


def test_tokens_come_and_go_without_a_restart(tmp_path: Path) -> None:
    known = doorman(tmp_path, line("shop", TOKEN))
    header = [("authorization", f"Bearer {TOKEN}")]
    path = tmp_path / "tokens"
    path.write_text("# nobody\n")
    os.utime(path, (1, 1))
    assert known.name_of(PEER, header, {}) is None
    path.write_text("not a line\n")
    assert known.name_of(PEER, header, {}) is None, "what cannot be read opens no door"
    path.write_text(line("again", TOKEN))
    assert known.name_of(PEER, header, {}) == "token:again"


@pytest.mark.parametrize("text", ["shop 1234\n", "shop\n", f"two words {'0' * 64}\n"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ServerStartError, match="--tokens .*line 1: must be a name"):
        doorman(tmp_path, text)
    with pytest.raises(ServerStartError, match="No such file"):
        TokenFile(tmp_path / "missing")


@pytest.mark.parametrize(
    ("peer", "name"),
    [(PEER, "ipv4:10.0.0.7"), ("ipv6:%5B::1%5D:40000", "ipv6:%5B::1%5D"), ("unix:/tmp/x", "unix:/tmp/x")],
)
def test_without_tokens_a_client_is_its_certificate_or_its_host(peer: str, name: str) -> None:
    assert Doorman().name_of(peer, [], {}) == name
    assert Doorman().name_of(peer, [], {"x509_common_name": [b"shop"]}) == "certificate:shop"
