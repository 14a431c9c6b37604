"""What bf16 and fp16 cost in quality: `python -m benchmarks.precision [--bundle bundles/nano] [--json PATH]`.

Every sampling run of the published code that the golden files keep (`tests/golden`), and objects of a trained bundle,
in each precision through the stages that are served. Figures against fp32, of the last latents and of the object:

    error    largest difference of the latents, over their largest value
    PSNR     of pictures of the splats that a trained decoder makes of them, in dB: pico's for 4 channels; nano's for
             16, which it takes for two objects
    random   the same with the golden files' decoder, whose weights are random

Guidance multiplies the rounding errors of a step by about ten. The random decoder is a stress test: its pictures are
noise of one splat per pixel, and a depth that is off by a hundredth moves splats by a pixel.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from benchmarks.machine import describe_machine
from diffsplat.backbones import SD15, BackboneSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.precision import cast_network, in_precision
from diffsplat.bundle import open_bundle
from diffsplat.geometry.cameras import generated_view_cameras
from diffsplat.geometry.gaussians import from_array
from diffsplat.graph import Precision
from diffsplat.networks import FLOAT32_PARTS, SplatDecoder, served_precision
from diffsplat.pipeline import Pipeline
from diffsplat.runtime import bundle_graphs
from diffsplat.splats.render import render
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.envelope import Envelope
from tests.golden.files import Golden, open_golden, schedule_of
from tests.golden.gsvae_files import build_golden_gsvae
from tests.golden.pipe_runs import PipeStage, case_options

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "data"
BUNDLES = ROOT / "bundles"
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16")
PARTS = tuple(sorted(path.stem for path in GOLDEN.glob("pipe_*.safetensors")))
PROMPTS = ("a red cube", "a cupcake", "a blue sphere", "a yellow car")
PIXELS = 128  # side of a picture
_UPSCALING = 8  # of the golden autoencoders
_TRAINED = {4: "pico", 16: "nano"}  # channels of the latents -> bundle
_DECODERS = {"pixart_alpha": "gsvae_sd", "pixart_sigma": "gsvae_sdxl", "sdxl": "gsvae_sdxl", "sd3": "gsvae_sd3"}


@dataclass(frozen=True)
class Row:
    """One run in one precision against fp32."""

    run: str  # file and case, or bundle and prompt
    precision: Precision
    latents_error: float
    psnr_db: float
    random_db: float | None = None

    def __str__(self) -> str:
        random = "" if self.random_db is None else f"   random {self.random_db:5.1f} dB"
        error = f"error {self.latents_error:8.3%}   PSNR {self.psnr_db:5.1f} dB"
        return f"{self.run:46} {self.precision}   {error}{random}"


@dataclass(frozen=True)
class Bounds:
    """What a run in half precision must keep to: stated from the measured table, with a margin."""

    error: float
    psnr_db: float
    random_db: float

    def hold(self, row: Row) -> bool:
        """Whether a row keeps them; a NaN does not."""
        random = row.random_db is None or row.random_db >= self.random_db
        return row.latents_error <= self.error and row.psnr_db >= self.psnr_db and random


BOUNDS: dict[Precision, Bounds] = {"bf16": Bounds(0.10, 35.0, 20.0), "fp16": Bounds(0.02, 50.0, 30.0)}
# Runs that half precision does less well. Clipping clean estimates to [-1, 1], which no default does, is a switch for
# networks whose outputs are in the hundreds, as random ones are; Instant3D's start keeps more of what a step adds.
EXCEPTIONS: dict[tuple[str, Precision], Bounds] = {
    ("pipe_pixart_sigma_text ddim_eta1_clips_x0", "bf16"): Bounds(0.50, 32.0, 20.0),
    ("pipe_pixart_sigma_text ddim_eta1_clips_x0", "fp16"): Bounds(0.08, 50.0, 30.0),
    ("pipe_sd_instant3d_init ddim_init_bg", "bf16"): Bounds(0.10, 31.0, 20.0),
}


def holds(row: Row) -> bool:
    """Whether a row keeps its bounds."""
    return EXCEPTIONS.get((row.run, row.precision), BOUNDS[row.precision]).hold(row)


def golden_runs(
    part: str,
    precisions: Sequence[Precision] = PRECISIONS,
    cases: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Iterator[Row]:
    """Rows of one `pipe_*` file, one per object: of all its cases, or of some; on `device`, against fp32 on the CPU."""
    file = open_golden(GOLDEN / f"{part}.safetensors")
    decoders = [_decoders(file, precision, device) for precision in precisions]
    exact_decoders = _decoders(file, "fp32", "cpu")
    for case in cases or file.cases:
        exact = _jobs(file, case, "fp32", "cpu")
        for precision, (trained, random) in zip(precisions, decoders, strict=True):
            for index, (half, whole) in enumerate(zip(_jobs(file, case, precision, device), exact, strict=True)):
                seen = [_pictures(decode, whole.latents, whole.envelope) for decode in exact_decoders]
                got = [_pictures(decode, half.latents, half.envelope) for decode in (trained, random)]
                run = f"{part} {case}" + (f" {index}" if len(exact) > 1 else "")
                yield Row(run, precision, _error(half.latents, whole.latents), *map(_psnr, got, seen))


def _jobs(file: Golden, case: str, precision: Precision, device: torch.device | str) -> list[DenoiseJob]:
    """The finished jobs of a case, one per object."""
    options = case_options(file, case)
    base = file.config["scheduler_config_of_base_model"]
    schedule = schedule_of(base, options["prediction_type"] or None, options["common_tricks"])
    stage = PipeStage(file, schedule, precision, device)
    jobs = [job for job, _ in stage.start(case)]
    while jobs[0].step < jobs[0].steps:
        stage.stage.step(jobs)
    return jobs


def _decoders(file: Golden, precision: Precision, device: torch.device | str) -> tuple[DecodeStage, DecodeStage]:
    """A trained decoder for the latents of a file, and the golden one."""
    size = file.config["net"]["sample_size"]
    golden = open_golden(GOLDEN / f"{_DECODERS.get(file.config['kind'], 'gsvae_sd')}.safetensors")
    channels = golden.config["vae_config"]["latent_channels"]
    bundle = open_bundle(BUNDLES / _TRAINED[channels])
    trained = bundle_graphs(bundle, ["decoder"], precision, device)["decoder"]
    gsvae = build_golden_gsvae(golden.config)
    gsvae.load_state_dict(golden.weights("gsvae"))
    used = served_precision("gsvae", precision)
    cast_network(gsvae, used, FLOAT32_PARTS["gsvae"])
    random = TorchGraph("decoder", in_precision(SplatDecoder(gsvae).eval().to(device), used), used)
    upscaling = bundle.spec.geometry.grid_size // bundle.spec.latent_size
    return (
        DecodeStage(_resized(bundle.spec, size, upscaling), trained),
        DecodeStage(_resized(replace(SD15, latent_channels=channels), size, _UPSCALING), random),
    )


def _resized(spec: BackboneSpec, latent_size: int, upscaling: int) -> BackboneSpec:
    geometry = replace(spec.geometry, grid_size=latent_size * upscaling)
    return replace(spec, latent_size=latent_size, geometry=geometry)


def bundle_runs(
    folder: Path, prompts: Sequence[str] = PROMPTS, precisions: Sequence[Precision] = PRECISIONS
) -> Iterator[Row]:
    """Rows of a trained bundle: one object per prompt, default options, the prompt's index as seed."""
    bundle = open_bundle(folder)
    exact, *halves = (Pipeline.from_bundle(bundle, precision) for precision in ("fp32", *precisions))
    for seed, prompt in enumerate(prompts):
        request = GenerationRequest(prompt, seed=seed)
        latents, seen = _object(exact, request)
        for precision, pipeline in zip(precisions, halves, strict=True):
            half, pictures = _object(pipeline, request)
            yield Row(f"{bundle.spec.name}: {prompt}", precision, _error(half, latents), _psnr(pictures, seen))


def _object(pipeline: Pipeline, request: GenerationRequest) -> tuple[Tensor, Tensor]:
    """Last latents of a request, and pictures of its object."""
    job = pipeline.denoise.start(pipeline.encode.run(request))
    while job.step < job.steps:
        pipeline.denoise.step([job])
    latents = job.result()
    return latents, _pictures(pipeline.decode, latents, job.envelope)


def _pictures(decode: DecodeStage, latents: Tensor, envelope: Envelope) -> Tensor:
    """The generated views of an object, drawn, [P, V, 3, H, W] in [0, 1]; P: how often the decoder's channels go in."""
    parts = latents.split(decode.spec.latent_channels, dim=-3)
    objects = [from_array(decode.run(part, envelope).splats.cpu()) for part in parts]
    request, geometry = envelope.request, decode.spec.geometry
    assert request.elevation_deg is not None and request.distance is not None
    cameras = generated_view_cameras(request.elevation_deg, request.distance, geometry.views)
    return torch.cat([render(splats, cameras, PIXELS, PIXELS, geometry).rgb for splats in objects])


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got.cpu() - exact).abs().max() / exact.abs().max())


def _psnr(got: Tensor, exact: Tensor) -> float:
    """In dB; written so that a NaN is no good picture."""
    squared = float((got - exact).square().mean())
    return 10 * math.log10(1 / max(squared, 1e-12)) if math.isfinite(squared) else -math.inf


def worst(rows: Sequence[Row]) -> dict[Precision, dict[str, float]]:
    """Precision -> the worst figure of each kind."""
    summary: dict[Precision, dict[str, float]] = {}
    for precision in dict.fromkeys(row.precision for row in rows):
        own = [row for row in rows if row.precision == precision]
        summary[precision] = {
            "runs": len(own),
            "largest_error": max(row.latents_error for row in own),
            "median_error": statistics.median(row.latents_error for row in own),
            "smallest_psnr_db": min(row.psnr_db for row in own),
            "smallest_random_db": min((row.random_db for row in own if row.random_db is not None), default=math.nan),
        }
    return summary


def text(rows: Sequence[Row]) -> str:
    """What the rows come to, in a line per precision, and the runs that have bounds of their own."""
    lines = []
    for precision in dict.fromkeys(row.precision for row in rows):
        apart = [row for row in rows if (row.run, row.precision) in EXCEPTIONS and row.precision == precision]
        figures = worst([row for row in rows if row.precision == precision and row not in apart])[precision]
        bound = BOUNDS[precision]
        lines.append(
            f"{precision}, {figures['runs']} runs: error at most {figures['largest_error']:.2%} (bound "
            f"{bound.error:.0%}), PSNR at least {figures['smallest_psnr_db']:.1f} dB ({bound.psnr_db:g}), random "
            f"{figures['smallest_random_db']:.1f} dB ({bound.random_db:g})"
        )
        lines += [f"  apart: {row} (bounds {EXCEPTIONS[row.run, precision]})" for row in apart]
    return "\n".join(lines)


def main() -> int:
    """Print, and write as JSON when asked; the exit code is 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLES / "nano", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows = []
    for row in chain(*map(golden_runs, PARTS), bundle_runs(args.bundle)):
        print(row, flush=True)
        rows.append(row)
    print(text(rows))
    if args.json:
        figures = {"machine": describe_machine(), "worst": worst(rows), "rows": [asdict(row) for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [row for row in rows if not holds(row)]
    for row in missed:
        print(f"MISSED: {row}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
