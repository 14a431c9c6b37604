"""What the reconstruction and the autoencoder lose, on novel views of objects that training never saw."""

from typing import NamedTuple

import numpy as np
import torch

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.geometry.cameras import Cameras
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.networks import bundle_network
from diffsplat.splats.render import render
from training.data.dataset import Dataset
from training.data.procedural.source import ProceduralSource
from training.data.procedural.synthetic_config import SyntheticConfig
from training.data.sample import collate
from training.losses import psnr

_FIRST_OBJECT = 500_000  # of the evaluation series; the rest of this benchmark uses lower numbers
_NOVEL_VIEWS = 3
_CHUNK = 8


class Reconstruction(NamedTuple):
    """PSNR in dB over all novel views."""

    recon_psnr_db: float  # four true views -> GSRecon -> novel views
    vae_psnr_db: float  # the same grid through the autoencoder
    vae_drop_db: float  # what that costs


@torch.no_grad()
def reconstruct(bundle: Bundle, config: SyntheticConfig, objects: int) -> Reconstruction:
    """Measure on objects from `_FIRST_OBJECT` on, at the resolution of the bundle's grid."""
    gsrecon, gsvae, geometry = bundle_network(bundle, "gsrecon"), bundle_network(bundle, "gsvae"), bundle.spec.geometry
    inputs, size = geometry.views, geometry.grid_size
    made = ProceduralSource(
        EVALUATION_SEED, objects, size, num_input_views=inputs, first_index=_FIRST_OBJECT, config=config
    )  # fmt: skip
    source = Dataset(
        made, num_input_views=inputs, num_views=inputs + _NOVEL_VIEWS, first_views=(0,),
        pixel_rule=geometry.unproject_pixel_rule,
    )  # fmt: skip
    shown: dict[str, list[torch.Tensor]] = {"recon": [], "vae": []}
    truth = []
    for start in range(0, objects, _CHUNK):
        rows = range(start, min(start + _CHUNK, objects))
        batch = collate([source.sample(index, np.random.default_rng(index)) for index in rows])
        cameras = Cameras(batch.camera_to_world[:, :inputs], batch.intrinsics[:, :inputs])
        novel = Cameras(batch.camera_to_world[:, inputs:], batch.intrinsics[:, inputs:])
        grid = gsrecon(torch.cat([batch.images_rgb, batch.normals, batch.coords], dim=2)[:, :inputs], cameras)
        for name, grids in (("recon", grid), ("vae", gsvae(grid))):
            splats = grid_to_gaussians(grids, cameras, geometry)
            shown[name].append(render(splats, novel, size, size, geometry).rgb)
        truth.append(batch.images_rgb[:, inputs:])
    recon, vae = (psnr(torch.cat(images), torch.cat(truth)).item() for images in shown.values())
    return Reconstruction(recon, vae, recon - vae)
