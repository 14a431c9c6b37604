"""One page in headless Chromium, driven by the browser's own protocol.

https://chromedevtools.github.io/devtools-protocol/: JSON messages over a websocket on loopback.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has no sandbox
    "--remote-debugging-port=0",
    # WebGL without a graphics card
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    # no address but loopback is reached, neither by the page nor by the browser itself
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--force-color-profile=srgb",
)
PATIENCE_S = 60.0  # for any one answer


def find_chromium() -> str:
    """The program; without it the test is skipped, or fails where DIFFSPLAT_REQUIRE_BROWSER is set."""
    if executable := next(filter(None, map(shutil.which, NAMES)), None):
        return executable
    reason = "no Chromium on this machine: apt-get install chromium"
    if os.environ.get("DIFFSPLAT_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


class Chromium:
    """A browser with one page; leaving the block ends it."""

    def __init__(self, executable: str, profile: Path, width: int, height: int) -> None:
        self.requests: list[str] = []  # addresses that the page and its workers asked for
        self.errors: list[str] = []  # uncaught exceptions, errors on the console, errors that the browser logs
        self._last_id = 0
        self._loaded = False
        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = connect(self._address(profile / "DevToolsActivePort"), max_size=None, compression=None)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._page = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._watch(self._page)
        self.call("Page.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("Browser.close")
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the page."""
        return self._call(method, self._page, **parameters)

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> np.ndarray:
        """What is seen, uint8 [height, width, 3]."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            return np.asarray(image.convert("RGB"))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button, move in ten steps, let go."""
        points = np.linspace(start, end, 11).tolist()
        self._mouse("mousePressed", *points[0], button="left", buttons=1, clickCount=1)
        for point in points[1:]:
            self._mouse("mouseMoved", *point, button="left", buttons=1)
        self._mouse("mouseReleased", *points[-1], button="left", clickCount=1)

    def wheel(self, x: float, y: float, pixels: float) -> None:
        """Turn the wheel; positive is towards the user."""
        self._mouse("mouseWheel", x, y, deltaX=0, deltaY=pixels)

    def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def _address(self, file: Path) -> str:
        """Where the browser listens: it writes the port and the path into its profile when it is ready."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            words = file.read_text().split() if file.exists() else []
            if len(words) == 2:
                return f"ws://127.0.0.1:{words[0]}{words[1]}"
            assert self._process.poll() is None, f"Chromium ended with code {self._process.returncode}"
            time.sleep(0.05)
        raise TimeoutError("Chromium did not start")

    def _watch(self, session: str) -> None:
        for domain in ("Runtime", "Network", "Log"):
            self._send(f"{domain}.enable", session)
        # workers begin paused, so that nothing they do is missed
        self._send("Target.setAutoAttach", session, autoAttach=True, waitForDebuggerOnStart=True, flatten=True)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        return self._last_id

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        wanted = self._send(method, session, **parameters)
        while (message := self._receive()).get("id") != wanted:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(PATIENCE_S))
        if "method" in message:
            self._note(message["method"], message["params"])
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
            case "Network.webSocketCreated":
                self.requests.append(values["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(values["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(argument.get("value")) for argument in values["args"]))
            case "Log.entryAdded" if values["entry"]["level"] == "error":
                self.errors.append(values["entry"]["text"])
            case "Target.attachedToTarget":
                self._watch(values["sessionId"])
                self._send("Runtime.runIfWaitingForDebugger", values["sessionId"])
