"""Start and stop the tritonserver that the nvidia-pytriton wheel carries.

    with TritonServer("build/pico") as server:
        client = Client(server.grpc_url)

The server listens on 127.0.0.1 only. It ends with its launcher: on leaving the `with` block and on Ctrl-C it is asked
to stop and waited for, and even a launcher that is killed takes it along (PR_SET_PDEATHSIG). Start it from a thread
that lives as long as the server should: the kernel looks at the thread, not at the process.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from diffsplat.serving.prerequisites import libpython_problem
from diffsplat.serving.wheel import ServerError, build_backend_folder, find_server, server_environment

HOST = "127.0.0.1"
_MARK = "diffsplat-server-"  # then the launcher's process id
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5  # Triton waits so long for requests in flight
KILL_AFTER_S = STOP_TIMEOUT_S + 10.0  # then the whole process group is killed
STUB_TIMEOUT_S = 240  # a model's process must have loaded its network by then

# Runs in the new process before it becomes tritonserver: a launcher's death, however sudden, shall end the server too.
_EXEC_TIED_TO_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("launcher is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

# as the server writes it, with the traceback's line breaks escaped
_LOAD_FAILURE = re.compile(
    r"""\bE \d+ .*"failed to load '(\w+)' version \d+: (?:Internal: )?(.*?)(?:\\n.*)?"$""", re.MULTILINE
)


class TritonServer:
    """A running tritonserver over one exported repository.

    Args:
        repository: folder written by `python -m export`.
        grpc_port, http_port, metrics_port: 0 takes a free one.
        on_progress: called with one short line for every model that starts loading or is ready.
        start_timeout_s: how long loading may take.

    Attributes:
        grpc_url, http_url, metrics_url: addresses, without a scheme for gRPC.
        pid: process id of tritonserver, which leads a process group of its own.
        log_path: everything the server and its models print.

    Raises:
        ServerError: by `start`, for a repository that is none, a port in use, or a server that does not get ready.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        on_progress: Callable[[str], None] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.repository = Path(repository).absolute()
        self._asked_ports = {"gRPC": grpc_port, "HTTP": http_port, "metrics": metrics_port}
        self._on_progress = on_progress or (lambda line: None)
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._shm_prefix = f"{_MARK}{os.getpid()}-{secrets.token_hex(4)}-"
        self._work_folder: Path | None = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until every model is ready."""
        if not (self.repository / "diffsplat" / "config.pbtxt").is_file():
            raise ServerError(
                f"{self.repository}: not an exported repository (diffsplat/config.pbtxt is missing); "
                "`python -m export` makes one"
            )
        problem = libpython_problem()
        if problem:
            raise ServerError(problem)
        home = find_server()
        ports = _choose_ports(self._asked_ports)
        self.grpc_url = f"{HOST}:{ports['gRPC']}"
        self.http_url = f"http://{HOST}:{ports['HTTP']}"
        self.metrics_url = f"http://{HOST}:{ports['metrics']}/metrics"
        _remove_leftovers()
        self._work_folder = Path(tempfile.mkdtemp(prefix=f"{_MARK}{os.getpid()}-"))
        self.log_path = self._work_folder / "server.log"
        try:
            backends = build_backend_folder(home, self._work_folder)
            command = self._command(home, backends, ports)
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-c", _EXEC_TIED_TO_LAUNCHER, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=server_environment(home),
                    start_new_session=True,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, waiting for requests in flight, and remove what it left in /dev/shm. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            with _interrupts_held_back():
                if process.poll() is None:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(KILL_AFTER_S)
                with contextlib.suppress(ProcessLookupError):  # also models' processes that outlived a killed server
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        if self._work_folder is not None:
            shutil.rmtree(self._work_folder, ignore_errors=True)
            self._work_folder = None

    def why_it_failed(self, lines: int = 15) -> str:
        """What the log says about a failure: one line per model that could not be loaded, else its last lines."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        failures = _LOAD_FAILURE.findall(text)
        if failures:
            return "\n".join(f"model {model}: {reason}" for model, reason in dict.fromkeys(failures))
        return "\n".join(line for line in text.splitlines()[-lines:] if line.strip())

    def _command(self, home: Path, backends: Path, ports: dict[str, int]) -> list[str]:
        return [
            str(home / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
            "--disable-auto-complete-config",  # completing them would start one more interpreter per model
            "--model-control-mode=none",
            f"--http-address={HOST}", f"--http-port={ports['HTTP']}",
            f"--grpc-address={HOST}", f"--grpc-port={ports['gRPC']}",
            f"--metrics-address={HOST}", f"--metrics-port={ports['metrics']}",
            f"--exit-timeout-secs={STOP_TIMEOUT_S}",
            "--log-format=ISO8601",
        ]  # fmt: skip

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        seen = 0
        while True:
            seen = self._report_loading(seen)
            code = self._process.poll()
            if code is not None:
                raise ServerError(f"the Triton server ended with code {code} while starting:\n{self.why_it_failed()}")
            if _answers(f"{self.http_url}/v2/health/ready"):
                self._report_loading(seen)
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the Triton server was not ready after {self._start_timeout_s:g} s:\n{self.why_it_failed()}"
                )
            time.sleep(0.1)

    def _report_loading(self, seen: int) -> int:
        """Report the log's lines from position `seen` on that say what loads; returns the new position."""
        with self.log_path.open("rb") as log:
            log.seek(seen)
            text = log.read()
        end = text.rfind(b"\n") + 1
        for line in text[:end].decode(errors="replace").splitlines():
            for pattern, report in (
                (r'"loading: (\w+):(\d+)', "loading {} (version {})"),
                (r'"successfully loaded \'(\w+)\'', "{} is ready"),
            ):
                match = re.search(pattern, line)
                if match:
                    self._on_progress(report.format(*match.groups()))
        return seen + end


def _remove_leftovers() -> None:
    """What launchers that were killed could not remove: their work folders, and regions of servers killed with them."""
    for root in (Path(tempfile.gettempdir()), Path("/dev/shm")):
        for path in root.glob(f"{_MARK}*"):
            launcher = path.name.removeprefix(_MARK).partition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # another launcher that starts now was quicker
                if launcher.isdigit() and not Path(f"/proc/{launcher}").exists() and path.stat().st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _choose_ports(asked: dict[str, int]) -> dict[str, int]:
    """The ports asked for, or free ones for 0. ServerError names a port that is in use."""
    chosen = {}
    with contextlib.ExitStack() as held:  # all at once, so that no free port is given out twice
        for name, port in asked.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                reason = (
                    "is in use" if isinstance(error, OSError) and error.errno == 98 else f"cannot be used ({error})"
                )
                raise ServerError(
                    f"port {port} for {name} on {HOST} {reason}: choose another one, or 0 for a free one"
                ) from None
            chosen[name] = probe.getsockname()[1]
    return chosen


def _answers(url: str) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business with loopback
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A second Ctrl-C during shutdown must not leave the server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
