"""What a bundle generates, by numbers: `python -m benchmarks.quality BUNDLE [--json PATH] [--sheet PNG]`.

Every shape in every colour, with several seeds, through the pipeline, seen from the four generated views:

    colour   mean colour of the foreground, nearest (in direction: shading only scales it) to the palette's named colour
    shape    a probe trained on true renders of other objects; its accuracy on held-out true renders stands beside
    recon    PSNR of novel views of unseen objects through GSRecon, and what is lost through GSVAE

The exit code is 1 when colour or shape misses its bar.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffsplat_client.request import GenerationRequest
from PIL import Image
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.shape_probe import PROBE_DATA_SEED, probed_shapes, train_probe, true_objects
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.cameras import Cameras
from diffsplat.gaussians import grid_to_gaussians
from diffsplat.pipeline import Pipeline
from diffsplat.render import render
from training.data.captions import COLOURS, ObjectWords, plain_caption
from training.data.procedural import ProceduralDataset
from training.data.sample import collate
from training.data.synthetic import SHAPES
from training.losses import psnr

COLOUR_BAR, SHAPE_BAR = 0.90, 0.80
_FIRST_SEED = 1_000  # of the requests
_PROBE_TRAINED, _PROBE_HELD_OUT = 864, 288  # objects: whole blocks of the generator's balanced series
_RECON_OBJECTS = 48
_RECON_FIRST = 500_000  # objects of the probe's series that the probe does not use
_PROBE_SIZE = 32
_FOREGROUND = 0.15  # a pixel belongs to the object when a channel is this far below white


@dataclass(frozen=True)
class Generated:
    """One request and what was seen in the result."""

    shape: str
    colour: str
    seed: int
    seen_shape: str
    seen_colour: str


def generate_all(bundle: Bundle, seeds: int) -> tuple[list[tuple[str, str, int]], Tensor]:
    """Shape, colour and seed of every request, and the views [N, V, 3, 32, 32] in [0, 1] on white."""
    pipeline = Pipeline.from_bundle(bundle)
    spec = bundle.spec
    views = spec.geometry.views
    poses = np.array([[spec.elevation_deg, 360.0 / views * v, spec.distance, 1.0] for v in range(views)], np.float32)
    asked, images = [], []
    for shape in SHAPES:
        for colour in COLOURS:
            prompt = plain_caption(ObjectWords(shape, colour, "medium"))
            for seed in range(_FIRST_SEED, _FIRST_SEED + seeds):
                request = GenerationRequest(prompt, seed=seed, frame_poses=poses, frame_size=_PROBE_SIZE)
                frames = pipeline.generate(request).frames
                assert frames is not None
                asked.append((shape, colour, seed))
                images.append(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0)
    return asked, torch.stack(images)


def nearest_colour(images: Tensor) -> str:
    """Name of the palette's colour that the foreground of [V, 3, H, W] on white is nearest to; "none" without any."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
    foreground = pixels[pixels.amin(dim=1) < 1.0 - _FOREGROUND]
    if not len(foreground):
        return "none"
    mean = torch.nn.functional.normalize(foreground.mean(dim=0), dim=0)
    palette = torch.nn.functional.normalize(torch.tensor(list(COLOURS.values())), dim=1)
    return list(COLOURS)[int((palette @ mean).argmax())]


@torch.no_grad()
def reconstruction(bundle: Bundle) -> dict[str, float]:
    """PSNR in dB of novel views of unseen objects, from the reconstructed grid and from the autoencoder's."""
    gsrecon, gsvae, geometry = bundle.load("gsrecon"), bundle.load("gsvae"), bundle.spec.geometry
    inputs, size = geometry.views, geometry.grid_size
    source = ProceduralDataset(
        PROBE_DATA_SEED, _RECON_OBJECTS, size, num_input_views=inputs, num_views=inputs + 3, first_views=(0,),
        pixel_rule=geometry.unproject_pixel_rule, first_index=_RECON_FIRST,
    )  # fmt: skip
    batch = collate([source.sample(index, np.random.default_rng(index)) for index in range(len(source))])
    cameras = Cameras(batch.camera_to_world[:, :inputs], batch.intrinsics[:, :inputs])
    novel = Cameras(batch.camera_to_world[:, inputs:], batch.intrinsics[:, inputs:])
    grid = gsrecon(torch.cat([batch.images_rgb, batch.normals, batch.coords], dim=2)[:, :inputs], cameras)
    figures = {}
    for name, shown in (("recon_psnr_novel_db", grid), ("vae_psnr_novel_db", gsvae(grid))):
        renders = render(grid_to_gaussians(shown, cameras, geometry), novel, size, size, geometry)
        figures[name] = psnr(renders.rgb, batch.images_rgb[:, inputs:]).item()
    return {**figures, "vae_drop_db": figures["recon_psnr_novel_db"] - figures["vae_psnr_novel_db"]}


def measure(bundle: Bundle, seeds: int) -> tuple[dict[str, Any], list[Generated], Tensor]:
    """All figures, every request with what was seen, and the views [N, V, 3, 32, 32]."""
    views = bundle.spec.geometry.views
    probe = train_probe(true_objects(0, _PROBE_TRAINED, _PROBE_SIZE, views))
    held_out = true_objects(_PROBE_TRAINED, _PROBE_HELD_OUT, _PROBE_SIZE, views)
    names = [list(SHAPES)[label] for label in held_out.labels.tolist()]
    hits = [seen == name for seen, name in zip(probed_shapes(probe, held_out.images), names, strict=True)]

    asked, images = generate_all(bundle, seeds)
    results = [
        Generated(*request, seen_shape, nearest_colour(image))
        for request, seen_shape, image in zip(asked, probed_shapes(probe, images), images, strict=True)
    ]
    figures = {
        "bundle": bundle.spec.name,
        "digest": bundle.digest,
        "requests": len(results),
        "seeds_per_prompt": seeds,
        "colour_accuracy": float(np.mean([r.seen_colour == r.colour for r in results])),
        "shape_accuracy": float(np.mean([r.seen_shape == r.shape for r in results])),
        "shape_accuracy_by_shape": {
            shape: float(np.mean([r.seen_shape == r.shape for r in results if r.shape == shape])) for shape in SHAPES
        },
        "probe_accuracy_on_true_renders": float(np.mean(hits)),
        **reconstruction(bundle),
    }
    return figures, results, images


def contact_sheet(results: list[Generated], images: Tensor, scale: int = 2) -> np.ndarray:
    """First seed of every prompt: a row per shape, a column per colour, the four views of each side by side."""
    first = [index for index, result in enumerate(results) if result.seed == _FIRST_SEED]
    cells = images[first].permute(0, 3, 1, 4, 2).flatten(2, 3)  # [N, H, V * W, 3]
    rows = cells.unflatten(0, (len(SHAPES), -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [S * H, C * V * W, 3]
    pixels = (rows * 255.0).round().to(torch.uint8).numpy()
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def main() -> int:
    """Print the table; write figures and sheet where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="objects per prompt")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--sheet", type=Path, help="PNG with the first object of every prompt")
    args = parser.parse_args()
    figures, results, images = measure(open_bundle(args.bundle), args.seeds)
    print(f"{figures['requests']} objects: {len(SHAPES)} shapes x {len(COLOURS)} colours x {args.seeds} seeds")
    print(f"colour  {figures['colour_accuracy']:7.1%}   (bar {COLOUR_BAR:.0%})")
    print(
        f"shape   {figures['shape_accuracy']:7.1%}   (bar {SHAPE_BAR:.0%}; "
        f"the probe itself on true renders: {figures['probe_accuracy_on_true_renders']:.1%})"
    )
    for shape, accuracy in figures["shape_accuracy_by_shape"].items():
        wrong = Counter(r.seen_shape for r in results if r.shape == shape and r.seen_shape != shape)
        print(f"        {accuracy:7.1%}   {shape}" + "".join(f", {n} x seen as {name}" for name, n in wrong.items()))
    print(
        f"recon   {figures['recon_psnr_novel_db']:6.2f} dB on novel views of unseen objects; "
        f"through the autoencoder {figures['vae_psnr_novel_db']:.2f} dB ({-figures['vae_drop_db']:+.2f})"
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), **figures}, indent=2) + "\n")
    if args.sheet:
        Image.fromarray(contact_sheet(results, images)).save(args.sheet)
    return int(figures["colour_accuracy"] < COLOUR_BAR or figures["shape_accuracy"] < SHAPE_BAR)


if __name__ == "__main__":
    sys.exit(main())
