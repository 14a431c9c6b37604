"""Every backbone and condition from official folders to a client: imported, exported, served, equal to the pipeline."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.contract import RECONSTRUCT, RECONSTRUCTION
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.events import Progress
from diffsplat_client.generation import Generation
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import BACKBONES
from diffsplat.backbones.spec import ControlType
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.pipeline import Pipeline, PipelineResult
from diffsplat.serving.server.server import TritonServer
from export.__main__ import main
from export.common import BackendChoice
from export.importing.layout import default_tags
from export.repository import export_repository
from tests.families import write_family_bundle
from tests.image_files import BAD_IMAGES, cmyk_image, grey_16_bit_image, image
from tests.official import unpublished_tags, write_official
from tests.serving.processes import TIMEOUT_S
from tests.serving.repositories import use_one_process_per_stage

pytestmark = pytest.mark.triton

Fields = dict[str, Any]  # of a request

# One seed for all: what makes the results of a cell differ are the conditions.
SHORT: Fields = {"prompt": "a red cube"}
LONG: Fields = {"prompt": "two blue spheres on a large green cone"}
PHOTO: Fields = {"image": image(1), "elevation_deg": 10.0}
DEPTH: Fields = {"control_image": grey_16_bit_image(2), "control_type": "depth"}
NORMAL: Fields = {"control_image": cmyk_image(3), "control_type": "normal"}
CANNY: Fields = {"control_image": image(4), "control_type": "canny", "extract_canny": True}

TEXT = [SHORT, {**LONG, "negative_prompt": "small", "steps": 5}, {**LONG, "guidance_scale": 1.0}]
START = [{**SHORT, "init_std": 0.1, "init_noise_strength": 0.7}]
IMAGE = [
    PHOTO,
    {**PHOTO, **SHORT},
    {**PHOTO, **SHORT, "image": grey_16_bit_image(5)},
    {**PHOTO, **LONG, "guidance_scale": 1.0, "steps": 5},
]
MORE_IMAGES = [
    {**SHORT, "image": image(1), "estimate_elevation": True},
    {**PHOTO, **LONG, "image": cmyk_image(6), "negative_prompt": "small"},
]
CONTROL = [
    {**SHORT, **DEPTH},
    {**LONG, **NORMAL, "control_scale": 0.5, "steps": 5},
    {**LONG, **CANNY, "guidance_scale": 1.0},
    {**DEPTH, "guess_mode": True},
]


@dataclass(frozen=True)
class Cell:
    """A backbone with a condition, and what is asked of it."""

    backbone: str
    requests: list[Fields]
    image: bool = False
    controls: tuple[ControlType, ...] = ()
    images: bool = False  # the image encoder and ElevEst beside the model
    backend: BackendChoice = "onnxruntime"  # of all graphs

    @property
    def name(self) -> str:
        """In the table of backbones."""
        return f"{self.backbone}{'_image' * self.image}"


ALL_CONTROLS: tuple[ControlType, ...] = ("depth", "normal", "canny")
# A server takes half a minute: those left out have the graphs and the wire of a sibling that is here
# (sd21-image: sd15-image, pixart-alpha-image: pixart-sigma-image, sd3-image: sd35-image).
CELLS = {
    "sd15": Cell("sd15", TEXT + START + CONTROL, controls=ALL_CONTROLS, images=True),
    "sd15-image": Cell("sd15", IMAGE + MORE_IMAGES, image=True, images=True),
    "sd21": Cell("sd21", TEXT),
    "sdxl": Cell("sdxl", TEXT + CONTROL, controls=ALL_CONTROLS),
    "sdxl-image": Cell("sdxl", IMAGE, image=True),
    "pixart-alpha": Cell("pixart_alpha", TEXT, backend="torch"),
    "pixart-sigma": Cell("pixart_sigma", TEXT),
    "pixart-sigma-image": Cell("pixart_sigma", IMAGE, image=True),
    "sd3": Cell("sd3", TEXT),
    "sd35": Cell("sd35", TEXT),
    "sd35-image": Cell("sd35", IMAGE, image=True),
}


def import_by_command(cell: Cell, direct: Bundle, root: Path) -> Bundle:
    """Through official folders below `root`. Meanwhile the table of backbones says the small sizes."""
    own = unpublished_tags(cell.name)
    options = write_official(direct, root, sharded=not cell.image, tags={**default_tags(cell.name), **own})
    arguments = ["import", "--backbone", cell.backbone, "--base", options.base]
    arguments += ["--image"] * cell.image + ["--image-encoder"] * (cell.images and not cell.image)
    arguments += ["--control", *cell.controls] if cell.controls else []
    for network, tag in own.items():
        arguments += ["--tag", f"{network}={tag}"]
    in_table = dataclasses.replace(direct.spec, controls=(), image_encoder=cell.image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, cell.name, in_table)
        assert main([*arguments, options.source, str(options.out)]) == 0
    return open_bundle(options.out)


@dataclass(frozen=True)
class Served:
    """A cell behind a server, and what the pipeline makes of its requests."""

    cell: Cell
    server: TritonServer
    requests: list[GenerationRequest]
    expected: list[PipelineResult]


@pytest.fixture(scope="module", params=CELLS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cell = CELLS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    direct = write_family_bundle(root / "direct", cell.name, cell.controls, cell.images)
    imported = import_by_command(cell, direct, root)
    assert imported.spec == direct.spec
    repository = export_repository(imported.root, root / "repository", cell.backend)
    assert {graph.backend for graph in repository.graphs.values()} == {cell.backend}
    poses = np.array([[np.nan, azimuth, 1.4, 1] for azimuth in (0, 90)], np.float32)
    requests = [GenerationRequest(**fields, seed=7, frame_poses=poses, frame_size=32) for fields in cell.requests]
    for model in (RECONSTRUCT, RECONSTRUCTION):  # other tests start these
        shutil.rmtree(repository.folder / model)
    with TritonServer(use_one_process_per_stage(repository.folder)) as server:
        pipeline = Pipeline.from_bundle(direct)  # what was neither imported nor exported, request by request
        yield Served(cell, server, requests, [pipeline.generate(request) for request in requests])


def test_a_client_gets_what_the_pipeline_makes(served: Served) -> None:
    """In batches with a request that runs before, beside and behind all others."""
    longest = dataclasses.replace(served.requests[-1], prompt=LONG["prompt"], steps=200)
    with (
        Client(served.server.grpc_url, timeout_s=TIMEOUT_S) as client,
        ThreadPoolExecutor(len(served.requests) + 1) as callers,
    ):
        running, enough = threading.Event(), threading.Event()
        companion = callers.submit(keep_running, client, longest, running, enough)
        try:
            assert running.wait(TIMEOUT_S)
            results = [*callers.map(client.generate, served.requests)]
        finally:
            enough.set()
        companion.result()
    for result, expected in zip(results, served.expected, strict=True):
        assert_same_object(result, expected)


def assert_same_object(result: Generation, expected: PipelineResult) -> None:
    """Positions, colours and opacities; a canonical quaternion may flip where two scales are nearly the same."""
    assert result.seed == expected.seed and result.warnings == expected.warnings
    assert result.elevation_deg == pytest.approx(expected.request.elevation_deg, abs=1e-3)
    mine, right = result.cloud.to_array(), expected.gaussians
    assert right is not None and mine.shape == right.shape
    for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):  # each about 0 .. 1
        error = np.abs(mine[:, columns] - right[:, columns]).max() / np.abs(right[:, columns]).max()
        assert error <= 1e-4, (columns, error)
    assert result.frames is not None and expected.frames is not None
    assert np.abs(result.frames.astype(int) - expected.frames).mean() < 0.1


def keep_running(client: Client, request: GenerationRequest, running: Event, enough: Event) -> None:
    """Denoise a request, again when it has finished, until it is `enough`; however fast the machine is."""
    while not enough.is_set():
        with client.stream(request) as events:
            for event in events:
                if isinstance(event, Progress):
                    running.set()
                if enough.is_set():
                    break


def test_every_condition_is_heard(served: Served) -> None:
    """Results differ by a hundred times what the served ones may be off."""
    splats = [expected.splats[:, :6] for expected in served.expected]
    for i, mine in enumerate(splats):
        for j in range(i):
            assert np.abs(mine - splats[j]).max() > 5e-3, (i, j)


def refused(cell: Cell) -> dict[str, tuple[Fields, str]]:
    """Name -> fields of a request that this cell must not take, and what the refusal says."""
    whose = f"the bundle 'tiny_{cell.name}'"
    cases = {
        "both images": ({**PHOTO, **DEPTH}, "image and control_image exclude each other"),
        "an unknown control": ({**DEPTH, "control_type": "pose"}, "control_type = 'pose': must be one of"),
        "a control without its map": ({"control_type": "depth"}, "control_type = 'depth' needs control_image"),
        "a map without its type": ({"control_image": image(4)}, "control_image needs control_type"),
        "edges of depth": ({**DEPTH, "extract_canny": True}, "extract_canny = True and control_type = 'depth'"),
        "a blob and an image": ({**PHOTO, "init_std": 0.1}, "init_std = 0.1 and image exclude each other"),
    }
    if cell.image:
        cases["no image"] = (SHORT, f"image is missing: {whose}")
        cases["a map for an image model"] = (DEPTH, f"image is missing: {whose}")
        cases["an open elevation"] = ({"image": image(1)}, f"elevation_deg is open: {whose}")
    else:
        cases["an image for a text model"] = (PHOTO, f"image is given: {whose} is conditioned on text alone")
    if not (cell.image or cell.controls):
        cases["a control that is not there"] = (DEPTH, f"control_type = 'depth': {whose} has the ControlNets: none")
    if not (cell.image or cell.images):
        cases["a blob without an encoder"] = ({"init_std": 0.1}, f"init_std = 0.1: must be 0, {whose}")
    for name, (data, says) in BAD_IMAGES.items():
        if cell.image:
            cases[f"{name} as image"] = ({**PHOTO, "image": data}, says)
        if cell.controls:
            cases[f"{name} as map"] = ({**DEPTH, "control_image": data}, says)
    return cases


def test_bad_conditions_are_refused_and_nothing_is_lost(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server: this client sends whatever it is given."""
    monkeypatch.setattr(GenerationRequest, "validate", lambda request: request)
    with Client(served.server.grpc_url, timeout_s=TIMEOUT_S) as client:
        for name, (fields, says) in refused(served.cell).items():
            refused_request = GenerationRequest(**{**SHORT, "steps": 200, **fields})
            with pytest.raises(InvalidRequestError) as caught, client.stream(refused_request) as events:
                next(events)  # no progress comes first
            assert says in str(caught.value), (name, str(caught.value))
        assert_same_object(client.generate(served.requests[0]), served.expected[0])
    assert "Traceback" not in served.server.log_path.read_text()
