"""A ControlNet on cached latents: a map of view 0 steers all views of a denoiser that stays as it is.

The map is made from the true view as serving makes it from a user's picture. It is never dropped; captions are, as when
the denoiser was trained. Residuals start at zero, so that the first step is the denoiser's own.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsplat.backbones.spec import ControlType
from diffsplat.denoisers.control_inputs import control_graphs, control_scales
from diffsplat.denoisers.controlnet import build_controlnet, copy_encoder
from diffsplat.denoisers.graph_inputs import size_numbers
from diffsplat.images.prepare import resize_antialiased
from diffsplat.networks import graph_modules
from diffsplat.text.features import TextFeatures
from training.checkpoint import save_finished
from training.config.controlnet import ControlNetConfig
from training.data.control_maps import ControlMaps
from training.data.dataset import Dataset
from training.latents import LatentBatch
from training.objectives import Dropped
from training.parents import Parent, open_parent
from training.sampling import generate_latents
from training.stage import Evaluation
from training.stages.common import image_grid, spec_of
from training.stages.diffusion import EVALUATED_TIMES, DiffusionStage
from training.stages.diffusion_panels import asked_objects, elevation_deg, generated_cameras, images_of

_PANEL_OBJECTS = 6


class ControlNetStage(DiffusionStage):
    """Trains the ControlNet alone."""

    name = "controlnet"

    def __init__(self, config: ControlNetConfig) -> None:
        spec = spec_of(config)
        if spec.family != "unet" or spec.is_image_conditioned:
            raise ValueError(f"backbone = {spec.name!r}: a ControlNet needs a UNet that is conditioned on text alone")
        super().__init__(config)
        self.control: ControlType = config.control
        self.network_name = f"controlnet_{config.control}"
        # the denoiser's step then takes residuals
        self.spec = dataclasses.replace(self.spec, controls=(config.control,))
        self.before: Parent | None = None
        if config.controlnet_start is not None:
            self.before = open_parent(config.controlnet_start, self.network_name)

    def build(self) -> nn.Module:
        """The ControlNet with its first weights, beside everything that is frozen."""
        super().build()
        self.denoiser.requires_grad_(False).eval()
        controlnet = build_controlnet(self.spec)
        if self.before is None:
            copy_encoder(controlnet, self.denoiser)
        else:
            self.before.load(self.network_name, controlnet)
        self.controlnet: nn.Module = controlnet.requires_grad_(True).to(self.device)
        wraps = graph_modules(self.spec)
        graphs = [wraps[name].wrap(self.controlnet) for name in control_graphs(self.spec, self.control)]
        self.hints, self.context, *self.added, self.step = graphs  # as they are served
        residuals: Any = self.step.residuals
        self.scales = control_scales(residuals, 1.0, guess_mode=False).to(self.device)
        self.trained = nn.ModuleDict({self.network_name: self.controlnet})
        return self.trained.train()

    def maps(self, objects: Dataset) -> ControlMaps:
        """The maps of the stage's kind."""
        return ControlMaps(self.control, objects, self.spec.hint_size)

    def validation_batch(self) -> LatentBatch:
        """Unseen objects with their plainest captions and their maps."""
        cache, maps = self._cache(True), self.maps(self._objects(True))
        places = zip(cache.objects.tolist(), cache.first_views.tolist(), strict=True)
        return super().validation_batch()._replace(maps=torch.stack([maps.of(*place) for place in places]))

    def predict_views(
        self, batch: LatentBatch, inputs: Tensor, timesteps: Tensor, text: TextFeatures, images: Tensor | None
    ) -> Tensor:
        """The denoiser's output with the residuals that the ControlNet makes of the maps."""
        assert batch.maps is not None and images is None
        rays = batch.plucker.to(self.device)
        residuals = self.residuals(batch.maps.to(self.device), inputs, rays, timesteps, text)
        return self.predict(inputs, rays, timesteps, text, residuals=residuals)

    def residuals(self, maps: Tensor, inputs: Tensor, rays: Tensor, timesteps: Tensor, text: TextFeatures) -> Tensor:
        """What the ControlNet adds to the denoiser of B objects: [B, K], packed; see `ControlStep`."""
        count = len(maps)
        scales = self.scales.expand(count, -1)
        extra = [
            graph(text.pooled.to(self.device), size_numbers(count, self.spec.image_size).to(self.device))
            for graph in self.added
        ]
        context = self.context(text.embeddings.to(self.device))
        residuals: Tensor = self.step(inputs, rays, timesteps, context, self.hints(maps), scales, *extra)
        return residuals

    def evaluate(self, batch: LatentBatch, generator: torch.Generator) -> Evaluation:
        """Error on unseen objects with their maps and with empty ones, and samples beside map and true object."""
        assert batch.maps is not None
        kept = torch.zeros(len(batch.uids), dtype=torch.bool)
        cases = {"mse": batch, "mse_empty_map": batch._replace(maps=torch.ones_like(batch.maps))}
        scalars = {}
        for name, shown in cases.items():
            noise = torch.Generator().manual_seed(generator.initial_seed())
            draws = [self.guess(shown, Dropped(kept, kept), noise).errors.mean() for _ in range(EVALUATED_TIMES)]
            scalars[name] = torch.stack(draws).mean().item()
        return Evaluation(scalars, {"map_decoded_generated": self._steered_panel(batch, generator)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the ControlNet, and which denoiser it belongs to."""
        denoiser = {"start": str(self.config.start)} if self.start is None else self.start.facts["files"]
        parents = {**self._parent_files(), "denoiser": denoiser}
        lineage = {**facts, "spec": self.spec.to_dict(), "parents": parents, "control": self.control}
        save_finished(out, {self.network_name: self.controlnet}, lineage, {})

    def _steered_panel(self, batch: LatentBatch, generator: torch.Generator) -> np.ndarray:
        """Of the first unseen objects: the map, what their latents hold, and a sample steered by the map."""
        assert batch.maps is not None
        spec, count = self.spec, min(_PANEL_OBJECTS, len(batch.uids))
        shown = self._first(batch, count)
        asked = [
            entry._replace(elevation_deg=elevation_deg(camera), control_map=shown_map)
            for entry, camera, shown_map in zip(
                asked_objects(shown, self.text, spec, None),
                shown.cameras.camera_to_world[:, 0],
                batch.maps,
                strict=False,
            )
        ]
        latents = generate_latents(
            self.denoiser, spec, asked, generator, self.config.evaluation_steps,
            controlnets={self.control: self.controlnet},
        )  # fmt: skip
        true = images_of(self.gsvae, shown.latents, shown.cameras, spec.geometry)
        generated = images_of(self.gsvae, latents, generated_cameras(asked, spec), spec.geometry)
        maps = resize_antialiased(batch.maps[:count], spec.geometry.grid_size)[:, None].to(true.device)
        return image_grid(torch.cat([maps, true, generated], dim=1))
