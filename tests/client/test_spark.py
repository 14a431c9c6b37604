"""Spark, three.js' renderer of splats, in a real browser shows our files as our rasterizer draws them."""

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from diffsplat_client import write_splats
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.axes import THREEDGS
from diffsplat_client.poses import FOCAL

from tests.client.bar_and_balls import bar_and_balls, difference, drawn, places
from tests.client.chromium import Chromium, find_chromium
from tests.client.node_readers import HERE, installed

SIZE = 256
ELEVATION_DEG, DISTANCE = 20.0, 1.6
PAGE = "spark.html"
SHOWN = ("ply", "splat", "spz", "sog")
CHANNELS = {"red": 0, "green": 1, "blue": 2}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Spark:
    """The page of Spark in a browser, and the folder that it is served from."""

    def __init__(self, browser: Chromium, folder: Path) -> None:
        self.browser = browser
        self.folder = folder

    def show(self, name: str, turned: bool) -> np.ndarray:
        """The picture of the object in one format, uint8 [SIZE, SIZE, 3]; `turned` by half a turn around x."""
        cloud, file_name = bar_and_balls(), FORMATS[name].file_name
        write_splats(self.folder / file_name, cloud, format=name)
        camera = {"focal": FOCAL, "elevation": np.deg2rad(ELEVATION_DEG), "distance": DISTANCE}
        arguments = ", ".join(map(json.dumps, (file_name, turned, camera)))
        assert self.browser.evaluate(f"show({arguments})") == len(cloud)
        return self.browser.screenshot()


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    chromium, packages = find_chromium(), installed()
    folder = tmp_path_factory.mktemp("page")
    (folder / PAGE).symlink_to(HERE / PAGE)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Chromium(chromium, tmp_path_factory.mktemp("profile"), SIZE, SIZE) as browser:
                browser.open(f"http://127.0.0.1:{server.server_port}/{PAGE}")
                yield Spark(browser, folder)
                hosts = {urlsplit(address).hostname for address in browser.requests if not address.startswith("blob:")}
                assert hosts == {"127.0.0.1"}, browser.requests
                assert browser.errors == []
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return drawn(bar_and_balls(), SIZE, ELEVATION_DEG, 0, DISTANCE)


@pytest.mark.parametrize("name", SHOWN)
def test_shown_as_drawn(spark: Spark, expected: np.ndarray, name: str) -> None:
    """Upright, solid and in its colours, where the page turns what is in the axes of 3DGS, as pages of Spark do."""
    image = spark.show(name, turned=FORMATS[name].frame == THREEDGS)
    assert difference(image, expected) < 4
    for color, channel in CHANNELS.items():
        seen, wanted = places(image, channel), places(expected, channel)
        assert abs(len(seen) / len(wanted) - 1) < 0.05, f"{color} covers {len(seen)} pixels, {len(wanted)} as drawn"
        np.testing.assert_allclose(seen.mean(axis=0), wanted.mean(axis=0), atol=0.5, err_msg=f"the {color} place")
        shades = [
            np.median(picture[tuple(pixels.T)], axis=0) for picture, pixels in ((image, seen), (expected, wanted))
        ]
        np.testing.assert_allclose(*shades, atol=6, err_msg=f"{color} itself")


@pytest.mark.parametrize("name", SHOWN)
def test_turned_the_other_way_it_is_upside_down(spark: Spark, expected: np.ndarray, name: str) -> None:
    """docs/formats.md: Spark takes a file's numbers as they are, and its own viewer turns every file, also .spz."""
    image = spark.show(name, turned=FORMATS[name].frame != THREEDGS)
    top, bottom = (places(picture, CHANNELS["blue"])[:, 0].mean() for picture in (expected, image))
    assert top < SIZE / 3 and bottom > SIZE * 2 / 3
    assert difference(image, expected) > 20


def test_the_published_file_is_taken_for_a_point_cloud(spark: Spark, expected: np.ndarray) -> None:
    """docs/formats.md: hence our .ply has no columns of colours."""
    image = spark.show("ply_compat", turned=False)
    assert (image < 250).any(axis=-1).mean() < 0.2 * (expected < 250).any(axis=-1).mean()
