"""What a .glb holds beside the splats, and what the files of others may hold."""

from typing import Any

import numpy as np
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.gltf import Document, Json
from diffsplat_client.viewer import covariances

from tests.client.test_hostile_files import SPLATS, glb
from tests.splat_clouds import make_cloud


def test_the_colours_of_the_fallback_are_linear() -> None:
    """As glTF wants COLOR_0: by the sRGB curve they give the splats' colours again; its alpha is the opacity."""
    cloud = make_cloud(200)
    document = Document.parse(FORMATS["glb"].write(cloud))
    (values,) = document.item("meshes", 0).items("primitives")
    assert values["mode"] == 0 and not document.has("extensionsRequired")
    linear = document.accessor(Json(values["attributes"], "attributes"), "COLOR_0", "VEC4")
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(curve[:, :3], cloud.rgb, atol=0.6 / 255)
    np.testing.assert_allclose(linear[:, 3], cloud.opacity, atol=1e-4)


def test_nodes_place_the_splats_of_a_glb() -> None:
    """A quarter turn around y, twice the size, moved up; below a node that moves it on."""
    cloud, half = make_cloud(SPLATS), float(np.sqrt(0.5))

    def place(document: dict[str, Any]) -> None:
        document["nodes"][0] |= {"rotation": [0, half, 0, half], "scale": [2, 2, 2], "translation": [0, 1, 0]}
        document["nodes"].append({"children": [0], "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]})
        document["scenes"][0]["nodes"] = [1]

    seen = FORMATS["glb"].read(glb(place))
    x, y, z = cloud.positions.T
    np.testing.assert_allclose(seen.positions, np.stack((2 * z + 5, 2 * y + 1, -2 * x), axis=1), atol=1e-5)
    np.testing.assert_allclose(seen.scales, 2 * cloud.scales, rtol=1e-5)
    turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    np.testing.assert_allclose(covariances(seen), 4 * turn @ covariances(cloud) @ turn.T, atol=1e-7)


def test_normalised_integers_of_a_glb() -> None:
    def as_bytes(document: dict[str, Any]) -> None:
        number = document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:OPACITY"]
        document["accessors"][number] |= {"componentType": 5121, "normalized": True, "byteOffset": 3}
        document["bufferViews"][number]["byteStride"] = 4

    seen = FORMATS["glb"].read(glb(as_bytes))
    highest = make_cloud(SPLATS).opacity.astype("<f4").view(np.uint8).reshape(SPLATS, 4)[:, 3]
    np.testing.assert_allclose(seen.opacity, highest / 255, rtol=1e-6)
