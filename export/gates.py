"""What a new version must show before it is served: it is refused by the first gate that it does not pass.

bundle    it is whole, and serves what the present version serves: same backbone, same models
parity    every graph equals the torch network in fp32 (checked by the export), and so does the whole chain
objects   objects made by it are there: finite, not empty, inside the frame
quality   a command of the user's, such as `python -m benchmarks.quality {bundle} --quick`, ends with 0
"""

import io
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffsplat_client.cloud import VISIBLE_OPACITY
from diffsplat_client.contract import GAUSSIAN_COLUMNS, MODELS
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.poses import four_views
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.export_record import RECORD, ExportRecord
from diffsplat.graph import Precision
from diffsplat.pipeline import Pipeline, PipelineResult
from diffsplat.stages.errors import NotFiniteError
from export.common import ExportError

PROMPTS = ("a red cube", "a blue sphere", "a wooden chair")
# Agreement of the exported chain with torch in fp32, as PSNR of the frames: a step's rounding grows over the loop.
# `python -m benchmarks.precision` measured 53 dB for fp16 and 33 dB for bf16 at worst; splats of fp32 agree to 1e-5
# (`python -m benchmarks backend_objects`), for which 60 dB of 8-bit frames leave room.
LEAST_PSNR_DB: dict[Precision, float] = {"fp32": 60.0, "fp16": 45.0, "bf16": 30.0}
FRAME_SIZE = 64
LEAST_COVER, MOST_COVER = 0.002, 0.95  # share of the frames that an object covers
LEAST_VISIBLE = 8  # splats above the threshold below which nothing is drawn
_STEPS = 4  # enough for every stage to run


class GateError(ExportError):
    """A version did not pass a gate; `gate` is its name, and the message starts with it."""

    def __init__(self, gate: str, message: str) -> None:
        super().__init__(f"gate {gate!r}: {message}")
        self.gate = gate


@dataclass(frozen=True)
class GateOptions:
    """What the gates ask for.

    Attributes:
        prompts: what the objects are made of; an image model gets an image of a ball beside them.
        other_backbone: accept another backbone, and with it other options of a request.
        quality_command: a command line; `{bundle}` stands for the bundle's folder. It must end with 0.
    """

    prompts: Sequence[str] = PROMPTS
    other_backbone: bool = False
    quality_command: str | None = None


def check_bundle(bundle: Bundle, stages: Sequence[str], repository: Path, served: str, options: GateOptions) -> None:
    """Gate "bundle": `stages` are the models that would serve it."""
    present = ExportRecord.parse(repository / "denoise" / served / RECORD)
    if bundle.spec.name != present.bundle and not options.other_backbone:
        raise GateError("bundle", f"it is of backbone {bundle.spec.name}, {repository} serves {present.bundle}")
    present_models = {name for name in MODELS if (repository / name).is_dir()}
    if differing := present_models ^ set(stages):
        raise GateError(
            "bundle",
            f"it would serve other models than {repository} does ({', '.join(sorted(differing))}): export it "
            "into another folder",
        )


def check_chain(bundle: Bundle, repository: Path, version: str, options: GateOptions) -> None:
    """Gates "parity" and "objects", on the exported graphs of a version."""
    exported, reference = Pipeline.load(repository, version), Pipeline.from_bundle(bundle)
    graphs = [
        graph for path in repository.glob(f"*/{version}/{RECORD}") for graph in ExportRecord.parse(path).graphs.values()
    ]
    limit = min((LEAST_PSNR_DB[graph.precision] for graph in graphs), default=LEAST_PSNR_DB["fp32"])
    for seed, prompt in enumerate(options.prompts):
        request = _request(bundle.spec, prompt, seed)
        made = _generate(exported, request)
        if seed == 0:
            psnr = _psnr(made, _generate(reference, request))
            if not psnr >= limit:
                raise GateError(
                    "parity", f"frames of {prompt!r} are {psnr:.1f} dB from torch's, at least {limit:g} asked"
                )
        _check_object(made, prompt)


def check_quality(bundle: Bundle, options: GateOptions, report: Callable[[str], None]) -> None:
    """Gate "quality"."""
    if options.quality_command is None:
        return
    command = [part.replace("{bundle}", str(bundle.root)) for part in shlex.split(options.quality_command)]
    report(f"quality: {shlex.join(command)}")
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise GateError("quality", f"{command[0]} cannot be run: {error.strerror}") from None
    if code:
        raise GateError("quality", f"`{shlex.join(command)}` ended with code {code}")


def _generate(pipeline: Pipeline, request: GenerationRequest) -> PipelineResult:
    """A stage refuses what another one made, such as embeddings that are not finite."""
    try:
        return pipeline.generate(request)
    except (InvalidRequestError, NotFiniteError) as error:
        raise GateError("objects", f"there is no object of {request.prompt!r}: {error}") from None


def _request(spec: BackboneSpec, prompt: str, seed: int) -> GenerationRequest:
    image = _ball() if spec.is_image_conditioned else None
    return GenerationRequest(
        prompt,
        seed=seed,
        steps=_STEPS,
        image=image,
        elevation_deg=10.0,
        frame_poses=four_views(10.0),
        frame_size=FRAME_SIZE,
    )


def _ball(side: int = 128) -> bytes:
    """A PNG of a shaded red ball on white."""
    from PIL import Image

    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    radius = np.hypot(x, y) / 0.7
    light = np.clip(np.sqrt(np.clip(1 - radius**2, 0, 1)) - 0.4 * y, 0.1, 1)
    colour = np.stack([220 * light, 40 * light, 40 * light], -1)
    image = np.where(radius[..., None] < 1, colour, 255).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()


def _psnr(made: PipelineResult, truth: PipelineResult) -> float:
    """Of the frames, in dB; -inf if the object is not finite."""
    assert made.frames is not None and truth.frames is not None
    if not np.isfinite(made.splats).all():
        return -np.inf
    error = np.mean((made.frames.astype(np.float64) - truth.frames) ** 2) / 255.0**2
    return float(-10 * np.log10(max(error, 1e-12)))


def _check_object(made: PipelineResult, prompt: str) -> None:
    assert made.frames is not None
    visible = int((made.splats[:, GAUSSIAN_COLUMNS["opacity"]] > VISIBLE_OPACITY).sum())
    cover = float((made.frames.min(-1) < 250).mean())
    if not np.isfinite(made.splats).all():
        raise GateError("objects", f"the object of {prompt!r} is not finite")
    if visible < LEAST_VISIBLE or not LEAST_COVER <= cover <= MOST_COVER:
        raise GateError(
            "objects",
            f"the object of {prompt!r} has {visible} visible splats and covers {cover:.1%} of its frames; at least "
            f"{LEAST_VISIBLE} and {LEAST_COVER:.1%} .. {MOST_COVER:.0%} are asked",
        )
