"""GSRecon with the reference's weights gives the reference's grids."""

from dataclasses import fields, replace

import pytest

from diffsplat.backbones import SD15
from diffsplat.geometry.cameras import Cameras
from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsrecon import GSReconConfig, build_gsrecon

REFERENCE_NAMES = {"rgb": "rgb", "scale": "scale", "rotation": "quat_wxyz", "opacity": "opacity", "depth": "depth"}
SETTINGS = {field.name for field in fields(GSReconConfig)}


@pytest.mark.parametrize("part", ["gsrecon_inputs", "gsrecon_plain", "gsrecon_llama"])
def test_gsrecon(golden, assert_close, part):
    file = golden(part)
    options = {name: value for name, value in file.config["opt"].items() if name in SETTINGS}
    gsrecon = build_gsrecon(replace(SD15, gsrecon={"input_size": file.config["opt"]["input_res"], **options}))
    gsrecon.load_state_dict(file.weights("gsrecon"))
    for case in file.cases:
        given, expected = file.case_in(case), file.out(case)
        grid = gsrecon(given["input_images"], Cameras(given["input_C2W"], given["input_fxfycxcy"]))
        for name, reference in expected.items():
            assert_close(grid[:, :, GRID_LAYOUT[REFERENCE_NAMES[name]]], reference, f"{case}/{name}")
