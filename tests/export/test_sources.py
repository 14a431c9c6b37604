"""Whatever an export is made by is part of its code hash; what it is not made by, is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.sources import ROOT, code_hash, export_sources

# builds every graph of every family, and prints which of our modules that took
BUILD_EVERYTHING = """
import dataclasses, json, sys
import torch
import export.repository, export.build
from diffsplat.backbones import PIXART_SIGMA, SD15, SD35, SDXL, image_conditioned
from diffsplat.networks import graph_modules, network_builders
from export.graphs import graph_specs

full = dataclasses.replace(SD15, controls=("depth",), image_encoder=True, elevest={})
for spec in (full, dataclasses.replace(SDXL, controls=("depth",)), PIXART_SIGMA, image_conditioned(SD35)):
    with torch.device("meta"):
        networks = {name: build() for name, build in network_builders(spec).items()}
        for graph in graph_modules(spec).values():
            graph.wrap(networks[graph.network])
    graph_specs(spec)
rooms = ("diffsplat", "diffsplat_client", "export")
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps(sorted(name for name, file in files.items() if file and name.split(".")[0] in rooms)))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Our code, where a test may edit it."""
    for folder in ("diffsplat", "client/diffsplat_client", "export"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_module_that_builds_a_graph_is_hashed() -> None:
    command = [sys.executable, "-c", BUILD_EVERYTHING]
    loaded = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    gathered_by_packages = {name for name in loaded if name.startswith("diffsplat_client.")}  # by its __init__.py
    assert {"diffsplat.images.dinov2", "diffsplat.denoisers.controlnet", "diffsplat.denoisers.sd3"} <= set(loaded)
    assert set(loaded) - gathered_by_packages <= set(export_sources())
    assert "diffsplat_client.contract" in export_sources()


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("diffsplat/images/dinov2.py", True),
        ("diffsplat/denoisers/pixart_text.py", True),
        ("diffsplat/geometry/cameras.py", True),
        ("diffsplat/backbones/__init__.py", True),
        ("export/to_onnx.py", True),
        ("client/diffsplat_client/contract.py", True),
        ("diffsplat/stages/denoise.py", False),
        ("client/diffsplat_client/cli.py", False),
        ("export/importing/hub.py", False),
    ],
)
def test_touching_a_module_changes_the_hash_where_an_export_is_made_by_it(
    checkout: Path, file: str, counts: bool
) -> None:
    before = code_hash(checkout)
    assert before == code_hash()  # of the content, not of the place
    with (checkout / file).open("a") as source:
        source.write("# touched\n")
    assert (code_hash(checkout) != before) == counts
