"""viewer.html: splats as one page that any browser opens from disk without a network.

The page is viser's own client with a serialized scene. This module adds three things: units for which half precision
is enough, a title, and a workaround for Chromium.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffsplat_client.cloud import VISIBLE_OPACITY, SplatCloud
from diffsplat_client.extras import require
from diffsplat_client.files import atomic_path
from diffsplat_client.formats.packing import unit_bytes
from diffsplat_client.poses import DEFAULT_DISTANCE, DEFAULT_ELEVATION_DEG, FOCAL

if TYPE_CHECKING:  # an optional package that takes half a second to import
    from viser import SceneApi, ViserServer

FOV_RAD = 2 * float(np.arctan(0.5 / FOCAL))
# The page stores covariances in half precision. Our splats have standard deviations around 0.01, and half precision
# loses digits of their squares; in units this many times smaller it does not.
UNITS_PER_WORLD_UNIT = 64.0
PREVIEW_S, LAST_S = 0.5, 3.0  # how long a preview, and the object after the last one, is shown
_OBJECT = "/object"
MAX_SCALE_UNITS = 200.0  # its square is still finite in half precision

# The page sorts splats in a worker, a module with a blob URL. Pages opened from disk have the origin "null", where
# Chromium refuses such workers without an exception that viser could catch, and splats would be drawn in the wrong
# order. It allows workers with data URLs.
_WORKERS_FROM_DATA = """<script>
if (self.origin === "null") {
  const asData = (address) => {
    const request = new XMLHttpRequest();
    request.open("GET", address, false);
    request.send();
    return "data:text/javascript;charset=utf-8," + encodeURIComponent(request.responseText);
  };
  self.Worker = class extends Worker {
    constructor(address, options) {
      const module = options?.type === "module" && String(address).startsWith("blob:");
      super(module ? asData(address) : address, options);
    }
  };
}
</script>"""
_CAPTION = """<div style="position: fixed; left: 1em; bottom: 0.7em; z-index: 1; pointer-events: none;
font: 14px system-ui, sans-serif; color: #444">{title}<br>
<small style="color: #888">drag to turn, scroll to zoom, drag with the right button to move</small></div>"""


def write_viewer(
    path: str | os.PathLike[str],
    cloud: SplatCloud,
    title: str = "Gaussian splats",
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    azimuth_deg: float = 0.0,
    distance: float = DEFAULT_DISTANCE,
    previews: Sequence[SplatCloud] = (),
) -> None:
    """Write the page; the file is either complete or absent. Needs the extra `viewer`.

    Args:
        path: the file, usually `viewer.html`.
        cloud: the splats; an empty cloud makes an empty page.
        title: of the window, also shown in a corner; for example the prompt.
        elevation_deg: of the first camera above the horizon; it looks at the origin.
        azimuth_deg: 0 is the front, from +z; 90 looks from +x.
        distance: of the camera from the origin, world units.
        previews: what the page shows before the cloud, one after the other; it gets controls to play them again.

    Raises:
        ModuleNotFoundError: viser is not installed; the message says how to install it.
    """
    page = viewer_html(cloud, title, elevation_deg, azimuth_deg, distance, previews)
    with atomic_path(path) as partial:
        partial.write_text(page, "utf-8")


def viewer_html(
    cloud: SplatCloud,
    title: str = "Gaussian splats",
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    azimuth_deg: float = 0.0,
    distance: float = DEFAULT_DISTANCE,
    previews: Sequence[SplatCloud] = (),
) -> str:
    """The page that `write_viewer` writes."""
    import html  # not above: its table of entities takes long to import

    with _scene_server() as server:
        scene, camera = server.scene, server.initial_camera
        scene.set_up_direction("+y")
        elevation, azimuth = np.deg2rad(elevation_deg), np.deg2rad(azimuth_deg)
        towards_camera = np.array(
            [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
        )
        camera.position, camera.look_at, camera.up = distance * towards_camera, np.zeros(3), np.array([0.0, 1.0, 0.0])
        camera.fov = FOV_RAD
        recording = server.get_scene_serializer()
        for shown in (*previews, cloud):
            _show(scene, shown)
            if previews:
                recording.insert_sleep(LAST_S if shown is cloud else PREVIEW_S)
        page = recording.as_html()
    title = html.escape(" ".join(title.split()))
    page = _once(r"<head>", f"<head>{_WORKERS_FROM_DATA}", page)
    page = _once(r"<title>[^<]*</title>", f"<title>{title}</title>", page)
    return _once(r"</body>", f"{_CAPTION.format(title=title)}</body>", page)


def _show(scene: "SceneApi", cloud: SplatCloud) -> None:
    """In the place of what the scene shows."""
    cloud = cloud[cloud.opacity >= VISIBLE_OPACITY]
    if not len(cloud):
        scene.remove_by_name(_OBJECT)
        return
    units = min(UNITS_PER_WORLD_UNIT, MAX_SCALE_UNITS / float(cloud.scales.max()))
    scene.add_gaussian_splats(
        _OBJECT,
        centers=cloud.positions * units,
        covariances=covariances(cloud) * units**2,
        rgbs=unit_bytes(cloud.rgb),
        opacities=unit_bytes(cloud.opacity[:, None]),
        scale=1 / units,
    )


def covariances(cloud: SplatCloud) -> np.ndarray:
    """R diag(scales)^2 R^T of every splat, world units squared, float32 [N, 3, 3]."""
    w, x, y, z = (cloud.quats_wxyz / np.linalg.norm(cloud.quats_wxyz, axis=1, keepdims=True)).T
    rotation = np.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        axis=-1,
    ).reshape(-1, 3, 3)
    scaled = rotation * cloud.scales[:, None, :]  # columns are the axes of the ellipsoid
    return scaled @ scaled.swapaxes(1, 2)


def check_viewer() -> None:
    """Check that viewer.html can be written.

    Raises:
        ModuleNotFoundError: viser is not installed; the message says how to install it.
    """
    require("viser", "viewer", "viewer.html")


@contextlib.contextmanager
def _scene_server() -> Iterator["ViserServer"]:
    """A scene of viser lives in a server; it listens on a free loopback port while the page is made."""
    check_viewer()
    from viser import ViserServer

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its address
        server = ViserServer("127.0.0.1", port=0, verbose=False)
        try:
            yield server
        finally:
            server.stop()


def _once(pattern: str, replacement: str, page: str) -> str:
    page, count = re.subn(pattern, lambda _: replacement, page, count=1)
    assert count == 1, f"viser's page has no {pattern}"
    return page
