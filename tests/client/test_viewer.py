"""viewer.html in a real browser: it shows what the rasterizer draws, turns, zooms, and sends no requests."""

import base64
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from diffsplat_client import SplatCloud, write_viewer
from diffsplat_client.viewer import LAST_S, PREVIEW_S, covariances, viewer_html

from tests.client.bar_and_balls import bar_and_balls, difference, drawn
from tests.client.chromium import Chromium, find_chromium

SIZE = 400  # the window's height; a square of it in the middle is compared, free of captions and buttons
WIDTH = 1200
TITLE = 'a <b>bar</b> & "balls"'
# three.js complains about the flat quads that viser draws splats with; nothing comes of it
KNOWN_ERROR = "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN"


def middle(browser: Chromium) -> np.ndarray:
    return browser.screenshot()[:, (WIDTH - SIZE) // 2 : (WIDTH + SIZE) // 2]


def wait_until_like(browser: Chromium, expected: np.ndarray, levels: float, seconds: float = 60.0) -> None:
    """Look until the page shows `expected`: splats grow in first, and are sorted a moment later."""
    deadline = time.monotonic() + seconds
    found = []
    while time.monotonic() < deadline:
        found.append(difference(middle(browser), expected))
        if found[-1] < levels:
            return
        time.sleep(0.1)
    pytest.fail(f"the page never came closer than {min(found):.1f} levels, at last {found[-1]:.1f}; {browser.errors}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(find_chromium(), tmp_path / "profile", WIDTH, SIZE) as browser:
        yield browser


def test_the_page_shows_the_object_turns_and_zooms(browser: Chromium, tmp_path: Path) -> None:
    cloud = bar_and_balls()
    write_viewer(tmp_path / "viewer.html", cloud, TITLE, elevation_deg=20, azimuth_deg=0, distance=1.6)
    browser.open((tmp_path / "viewer.html").as_uri())
    assert browser.evaluate("document.title") == TITLE
    assert TITLE in browser.evaluate("document.body.innerText")

    front = drawn(cloud, SIZE, 20, 0, 1.6)
    wait_until_like(browser, front, levels=5)

    # as wide as the window is high is a whole turn; the camera goes the other way
    browser.drag((WIDTH / 2, SIZE / 2), (WIDTH / 2 - SIZE / 4, SIZE / 2))
    wait_until_like(browser, drawn(cloud, SIZE, 20, 90, 1.6), levels=5)

    browser.drag((WIDTH / 2, SIZE / 2), (WIDTH / 2 + SIZE / 4, SIZE / 2))
    wait_until_like(browser, front, levels=5)

    seen = (front < 250).any(axis=-1).mean()
    browser.wheel(WIDTH / 2, SIZE / 2, -200)
    deadline = time.monotonic() + 30
    while (middle(browser) < 250).any(axis=-1).mean() < 1.1 * seen:
        assert time.monotonic() < deadline, "the wheel does not zoom"

    schemes = {address.split(":", 1)[0] for address in browser.requests}
    assert schemes <= {"file", "data", "blob"}, browser.requests
    assert sum(address.startswith("file:") for address in browser.requests) == 1
    assert [error for error in browser.errors if KNOWN_ERROR not in error] == []


def test_the_comparison_sees_what_can_go_wrong() -> None:
    """A quaternion read backwards, a mirrored frame or a wrong order are far beyond what the browser test allows."""
    cloud = bar_and_balls()
    front = drawn(cloud, SIZE, 20, 0, 1.6)
    turned_back = cloud.quats_wxyz * np.array([1, -1, -1, -1], np.float32)
    wrong = SplatCloud(cloud.positions, cloud.rgb, cloud.opacity, cloud.scales, turned_back)
    assert difference(drawn(wrong, SIZE, 20, 0, 1.6), front) > 20
    assert difference(front[:, ::-1], front) > 20
    assert difference(drawn(cloud, SIZE, 20, 180, 1.6), front) > 20


def test_covariances_are_those_of_turned_ellipsoids() -> None:
    half = np.sqrt(0.5)
    cloud = SplatCloud(
        positions=np.zeros((2, 3)),
        rgb=np.zeros((2, 3)),
        opacity=np.ones(2),
        scales=np.array([[1, 2, 3], [1, 2, 3]]),
        quats_wxyz=np.array([[5, 0, 0, 0], [half, half, 0, 0]]),  # as it is; a quarter turn about x
    )
    np.testing.assert_allclose(covariances(cloud), [np.diag([1, 4, 9]), np.diag([1, 9, 4])], atol=1e-5)


def test_one_page_without_addresses_and_without_talk(capfd: pytest.CaptureFixture[str]) -> None:
    page = viewer_html(bar_and_balls()[:0], "one\n</title><script>two()")
    assert "<title>one &lt;/title&gt;&lt;script&gt;two()</title>" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)\w+:""", page)
    assert "<link" not in page.replace('<link\n      rel="icon"', "")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_previews_are_played_before_the_object() -> None:
    clouds = [bar_and_balls()[:count] for count in (5, 0, 7)]
    data = re.search('__VISER_EMBED_DATA__="([^"]+)"', viewer_html(clouds[-1], previews=clouds[:-1]))
    assert data is not None
    inner = zstandard.ZstdDecompressor().decompress(base64.b64decode(data[1])[8:])
    recording = msgspec.msgpack.decode(inner[8 : 8 + int.from_bytes(inner[:8], "little")])
    assert recording["durationSeconds"] == 2 * PREVIEW_S + LAST_S
    shown = [(second, message["type"]) for second, message in recording["messages"] if message.get("name") == "/object"]
    kinds = [(second, "Splats" in kind) for second, kind in shown if "Splats" in kind or "Remove" in kind]
    assert kinds == [(0.0, True), (PREVIEW_S, False), (2 * PREVIEW_S, True)]


def test_without_viser_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ModuleNotFoundError, match=r"viser.*pip install 'diffsplat-client\[viewer\]'"):
        write_viewer(tmp_path / "viewer.html", bar_and_balls())
    assert not list(tmp_path.iterdir())
