"""How another process of the same user asks `diffsplat serve` to serve another version.

A server listens on a unix socket in the state folder; a file beside it names the repository that it serves. A question
is one JSON line, the answer a line of JSON per step and a last one with "done" or "error". Who may open the socket
decides the file system: the folder belongs to the user alone.
"""

import contextlib
import json
import os
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffsplat.serving.server.log import state_folder

Handler = Callable[[str, Callable[[str], None]], None]  # version, report


class ControlError(RuntimeError):
    """A server refused, or ended while it worked on the question; the message says why."""


class ControlSocket:
    """Answers questions until it is closed.

    Args:
        repository: the folder that is served.
        switch: changes the version; what it raises as ControlError goes to the asker.

    Raises:
        OSError: the state folder cannot be written.
    """

    def __init__(self, repository: Path, switch: Handler) -> None:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = _folder() / f"{os.getpid()}-{secrets.token_hex(4)}.sock"
        self._entry = self._path.with_suffix(".json")

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self._answer(json.loads(self.rfile.readline()))

            def _answer(self, question: dict[str, Any]) -> None:
                try:
                    switch(str(question["switch_to"]), lambda line: self._send(step=line))
                    self._send(done=True)
                except ControlError as error:
                    self._send(error=str(error))

            def _send(self, **message: object) -> None:
                with contextlib.suppress(OSError):  # who asked may have left: the work goes on
                    self.wfile.write(json.dumps(message).encode() + b"\n")

        class Listener(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A question that is none ends its own connection."""

        with _short_path(self._path) as path:
            self._listener = Listener(path, Answer)
        self._path.chmod(0o600)
        self._entry.write_text(json.dumps({"repository": str(repository.resolve())}))
        threading.Thread(target=self._listener.serve_forever, name="control", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._entry.unlink(missing_ok=True)
        self._listener.shutdown()
        self._listener.server_close()
        self._path.unlink(missing_ok=True)


def servers_of(repository: Path) -> list[Path]:
    """Sockets of the servers that serve a repository. Entries of servers that were killed are removed."""
    sockets = []
    for entry in sorted(_folder().glob("*.json")):
        path = entry.with_suffix(".sock")
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not _answers(path):
                entry.unlink()
                path.unlink()
            elif json.loads(entry.read_text())["repository"] == str(repository.resolve()):
                sockets.append(path)
    return sockets


def ask_to_switch(server: Path, version: str, report: Callable[[str], None]) -> None:
    """Let a server change to `version`, and wait until the old one is unloaded.

    Raises:
        ControlError: it did not, and serves what it served before, or it ended meanwhile.
    """
    for message in _talk(server, {"switch_to": version}):
        if "error" in message:
            raise ControlError(message["error"])
        if "done" in message:
            return
        report(message["step"])
    raise ControlError("the server ended while it changed the version")


def _talk(server: Path, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _short_path(server) as path:
                connection.connect(path)
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile() as answers:
                for line in answers:
                    yield json.loads(line)
        except OSError as error:
            raise ControlError(f"the server does not answer: {error}") from None


def _answers(server: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, _short_path(server) as path:
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def _folder() -> Path:
    return state_folder() / "servers"


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Another name of `path` for as long as it is needed: the address of a socket takes at most 107 bytes."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
