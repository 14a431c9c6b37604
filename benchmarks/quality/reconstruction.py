"""What the reconstruction and the autoencoder lose, on objects that training never saw.

Axes: N objects, V input views.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.splats import dead_share, mean_figures, splat_figures
from benchmarks.quality.surface import SURFACE_PX, mean_surface, surface
from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.geometry.gaussians import Gaussians, grid_to_gaussians, to_array
from diffsplat.networks import bundle_network
from diffsplat.splats.render import render
from training.data.dataset import Dataset
from training.data.procedural.source import ProceduralSource
from training.data.procedural.synthetic_config import SyntheticConfig
from training.data.sample import Batch, collate
from training.losses import psnr
from training.stages.common import batch_cameras, input_images

_FIRST_OBJECT = 500_000  # of the evaluation series; the rest of this benchmark uses lower numbers
_NOVEL_VIEWS = 3
_ENLARGED = (1, 2, 4)  # sides of the frames that are compared, in sides of the grid
_DISTANCE = 1.4  # of the reference camera, in a sample's world


class Reconstruction(NamedTuple):
    """Novel views in dB of PSNR, and the splats, of two networks.

    recon: four true views -> GSRecon; vae: the same grid through GSVAE.
    """

    recon_psnr_db: float
    vae_psnr_db: float
    vae_drop_db: float  # what the autoencoder costs
    psnr_db_by_side: dict[str, dict[str, float]]  # network -> side of the frames in pixels -> dB
    dead_pixels: dict[str, float]  # network -> share of solid pixels whose splat is not drawn
    grid_splats: dict[str, dict[str, float]]  # network -> figures of `splats.Splats`
    grid_surface: dict[str, dict[str, float | None]]  # network, and "true" -> figures of `surface.Surface`


@torch.no_grad()
def reconstruct(bundle: Bundle, config: SyntheticConfig, objects: int) -> Reconstruction:
    """Measure on objects from `_FIRST_OBJECT` on."""
    gsrecon, gsvae, geometry = bundle_network(bundle, "gsrecon"), bundle_network(bundle, "gsvae"), bundle.spec.geometry
    inputs, grid_side = geometry.views, geometry.grid_size
    sides = [grid_side * factor for factor in _ENLARGED]
    samples = {side: _samples(bundle, config, objects, side) for side in {*sides, SURFACE_PX}}
    errors: dict[str, dict[str, list[float]]] = {name: {str(side): [] for side in sides} for name in ("recon", "vae")}
    dead: dict[str, list[float]] = {name: [] for name in errors}
    figures: dict[str, list] = {name: [] for name in errors}
    surfaces: dict[str, list] = {name: [] for name in ("true", *errors)}
    for index in range(objects):
        seen = {side: collate([source.sample(index, np.random.default_rng(index))]) for side, source in samples.items()}
        batch = seen[grid_side]
        cameras = batch_cameras(batch, inputs)
        grid = gsrecon(input_images(batch, inputs), cameras)
        surfaces["true"].append(surface(seen[SURFACE_PX].alphas[0, inputs:, 0]))
        for name, one in (("recon", grid), ("vae", gsvae(grid))):
            splats = grid_to_gaussians(one, cameras, geometry)
            for side in sides:
                images, _ = _seen(splats, seen[side], bundle)
                db = psnr(images[:, inputs:], seen[side].images_rgb[:, inputs:])
                errors[name][str(side)].append(db.item())
            _, alphas = _seen(splats, seen[SURFACE_PX], bundle)
            surfaces[name].append(surface(alphas[0, inputs:, 0]))
            dead[name].append(dead_share(one, batch.alphas[:, :inputs]))
            figures[name].append(splat_figures(to_array(splats), _DISTANCE, grid_side))
    means = {name: {side: float(np.mean(values)) for side, values in of.items()} for name, of in errors.items()}
    recon, vae = (means[name][str(grid_side)] for name in errors)
    return Reconstruction(
        recon, vae, recon - vae, means,
        {name: float(np.mean(values)) for name, values in dead.items()},
        {name: mean_figures(values) for name, values in figures.items()},
        {name: mean_surface(values) for name, values in surfaces.items()},
    )  # fmt: skip


def _samples(bundle: Bundle, config: SyntheticConfig, objects: int, side: int) -> Dataset:
    """The objects by four input views and novel ones, of one size."""
    inputs = bundle.spec.geometry.views
    made = ProceduralSource(
        EVALUATION_SEED, objects, side, num_input_views=inputs, first_index=_FIRST_OBJECT, config=config
    )  # fmt: skip
    return Dataset(
        made, num_input_views=inputs, num_views=inputs + _NOVEL_VIEWS, first_views=(0,),
        pixel_rule=bundle.spec.geometry.unproject_pixel_rule,
    )  # fmt: skip


def _seen(splats: Gaussians, batch: Batch, bundle: Bundle) -> tuple[Tensor, Tensor]:
    """Colours and alphas of one object by all cameras of its views, at their size: [1, V, 3, S, S], [1, V, 1, S, S]."""
    side = batch.images_rgb.shape[-1]
    renders = render(splats, batch_cameras(batch), side, side, bundle.spec.geometry)
    return renders.rgb, renders.alpha
