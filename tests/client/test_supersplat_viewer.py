"""SuperSplat's viewer in a real browser shows our files upright and solid."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import write_splats

from tests.client.bar_and_balls import bar_and_balls, places
from tests.client.chromium import Chromium, find_chromium
from tests.client.node_readers import installed, splat_transform

WIDTH, HEIGHT = 800, 400
PATIENCE_S = 120.0


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(find_chromium(), tmp_path / "profile", WIDTH, HEIGHT) as browser:
        yield browser


@pytest.mark.parametrize("name", ["ply", "sog"])
def test_upright_and_solid(browser: Chromium, tmp_path: Path, name: str) -> None:
    """The page is splat-transform's: it holds what that read of our file, and SuperSplat Viewer to show it.

    The camera circles around the object, whose blue ball is on top.
    """
    source = tmp_path / f"in.{name}"
    write_splats(source, bar_and_balls())
    splat_transform(installed(), source, tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    deadline = time.monotonic() + PATIENCE_S
    red, green, blue = [np.empty((0, 2))] * 3
    while min(len(red), len(green), len(blue)) < 60:  # the page is loading, or one hides another
        assert time.monotonic() < deadline, f"not all seen: {browser.errors}"
        time.sleep(0.2)
        image = browser.screenshot()[: HEIGHT // 2 + 100]  # above the controls
        red, green, blue = (places(image, channel) for channel in range(3))
    assert blue[:, 0].mean() < min(red[:, 0].mean(), green[:, 0].mean()) - 5, "the top is not on top"
    rows, columns = np.ptp(blue, axis=0) + 1
    assert len(blue) > 0.6 * rows * columns, "a disc fills pi / 4 of the square around it, unless it has holes"
    assert 0.5 < rows / columns < 2
