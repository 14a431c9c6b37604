"""The text-conditioned denoiser on cached latents, trained together with its text encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import DenoiserStep, TextContext
from diffsplat.geometry.cameras import Cameras, generated_view_cameras
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.splats.gsrecon import GSRecon, build_gsrecon
from diffsplat.splats.gsvae import GSVAE, build_gsvae
from diffsplat.splats.render import render
from diffsplat.text.encoders import build_encoder
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer
from training.assemble import TOKENIZER_FILE
from training.checkpoint import save_finished
from training.config.diffusion import DiffusionConfig
from training.data.dataset import Dataset
from training.data.procedural.synthetic import vocabulary
from training.data.procedural.synthetic_config import CONFIGS
from training.data.record import TRAINING_MAPS
from training.data.source import require
from training.latents import LatentBatch, LatentCache, LatentStream, cached_latents
from training.loop import Evaluation
from training.objectives import Objective, drop_conditions
from training.optim import decay_groups
from training.parents import latents_of, open_parent
from training.sampling import generate_latents
from training.stages.common import comparison_panel, dataset, mixed_precision, spec_of

_EVALUATED_TIMES = 4  # draws of timestep and noise per validation object
_PANEL_OBJECTS = 12


class DiffusionStage:
    """Trains denoiser and text encoder, from scratch or from an earlier run."""

    name = "diffusion"
    needs = TRAINING_MAPS | {"caption"}
    updates = 0

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        spec = spec_of(config)
        self.recon, self.vae = open_parent(config.recon, "gsrecon"), open_parent(config.vae, "gsvae")
        self.start = None if config.start is None else open_parent(config.start, "denoiser")
        if self.vae.facts["recon"] != self.recon.facts["files"]:
            raise ValueError(f"vae = {config.vae} was trained on another recon stage than {config.recon}")
        if spec.family != "unet" or len(spec.text.encoders) != 1:
            raise ValueError(f"backbone = {spec.name!r}: this stage trains UNets with one text encoder")
        if spec.elevation_deg is None:
            raise ValueError(f"backbone = {spec.name!r}: has no default elevation, and this stage trains on text alone")
        self.elevation_deg = spec.elevation_deg
        (encoder,) = spec.text.encoders
        self.tokenizer_json = train_tokenizer(vocabulary(CONFIGS[config.data.grammar]), encoder.max_tokens)
        self.tokenizer = Tokenizer.for_encoder(self.tokenizer_json, encoder)
        encoder = dataclasses.replace(encoder, config={**encoder.config, "vocab_size": self.tokenizer.vocab_size})
        self.spec = dataclasses.replace(
            spec,
            gsvae={**autoencoder_config(spec, self.vae.facts), **self.vae.facts["latent_scale"]},
            text=dataclasses.replace(spec.text, encoders=(encoder,)),
        )
        if self.start is not None and not same_denoiser(self.spec, BackboneSpec.from_dict(self.start.facts["spec"])):
            raise ValueError(
                f"start = {config.start} was trained with another spec than {spec.name} on {config.vae} has"
            )
        self.objective = Objective.of(spec.schedule, config.objective)
        self._caches: dict[bool, LatentCache] = {}

    def build(self) -> nn.Module:
        """Denoiser and text encoder, freshly initialised or from an earlier run, beside frozen GSRecon and GSVAE."""
        device = self.config.run.device
        denoiser = build_denoiser(self.spec)
        assert isinstance(denoiser, UNet2DConditionModel)
        self.denoiser = denoiser
        self.text_encoder = build_encoder(self.spec.text.encoders[0])
        gsrecon = self.recon.load("gsrecon", build_gsrecon(self.spec)).to(device)
        gsvae = self.vae.load("gsvae", build_gsvae(self.spec)).to(device)
        assert isinstance(gsrecon, GSRecon) and isinstance(gsvae, GSVAE)
        self.gsrecon, self.gsvae = gsrecon, gsvae
        self.step = DenoiserStep(self.denoiser, self.spec.geometry.views)  # the graphs that are served
        self.context = TextContext(self.denoiser)
        trained = nn.ModuleDict({"denoiser": self.denoiser, "text_encoder": self.text_encoder})
        if self.start is not None:
            for name, network in trained.items():
                self.start.load(name, network)
        return trained.requires_grad_(True).train()

    def param_groups(self) -> list[dict[str, Any]]:
        """Both networks."""
        return decay_groups([self.denoiser, self.text_encoder], self.config.optim.weight_decay)

    def stream(self, rank: int, world_size: int) -> LatentStream:
        """Cached latents with captions."""
        config = self.config
        source = self._objects(False).source
        return LatentStream(self._cache(False), source, config.data.batch_size, config.run.seed, rank, world_size)

    def validation_batch(self) -> LatentBatch:
        """Unseen objects with their plainest captions."""
        cache = self._cache(True)
        source = self._objects(True).source
        return cache.batch(range(len(cache)), [source.caption(index, None) for index in cache.objects.tolist()])

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the prediction, one timestep per object, some captions dropped."""
        uniform = torch.rand(len(batch.captions), generator=generator)
        dropped = drop_conditions(uniform, self.config.dropout_rate, has_image=False).text
        captions = ["" if drop else caption for caption, drop in zip(batch.captions, dropped.tolist(), strict=True)]
        errors, times = self._errors(batch, captions, generator)
        loss = (self.objective.loss_weights(times) * errors).mean()
        return loss, {"mse": errors.detach().mean()}

    def evaluate(self, batch: LatentBatch, generator: torch.Generator) -> Evaluation:
        """Error on unseen objects with and without their captions, and samples of some captions."""
        scalars = {}
        for name, captions in (("mse", list(batch.captions)), ("mse_no_text", [""] * len(batch.captions))):
            noise = torch.Generator().manual_seed(generator.initial_seed())
            draws = [self._errors(batch, captions, noise)[0].mean() for _ in range(_EVALUATED_TIMES)]
            scalars[name] = torch.stack(draws).mean().item()
        return Evaluation(scalars, {"decoded_beside_generated": self._samples_panel(batch, generator)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the averaged networks, the tokenizer, and the spec with measured latent scale and vocabulary."""
        networks = {"denoiser": self.denoiser, "text_encoder": self.text_encoder}
        lineage = {**facts, "spec": self.spec.to_dict(), "parents": self._parent_files()}
        save_finished(out, networks, lineage, {TOKENIZER_FILE: self.tokenizer_json})

    def _errors(self, batch: LatentBatch, captions: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared error per object [B] at freshly drawn rows of the noise table [B]."""
        device = self.config.run.device
        clean = batch.latents.to(device)
        times = self.objective.sample_t(len(clean), generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = times.to(device)
        noisy = self.objective.add_noise(clean, noise, times)
        input_ids = self.tokenizer.encode(captions).input_ids.to(device)
        inputs, timesteps = self.objective.network_input(noisy, times), self.objective.network_timesteps(times)
        with mixed_precision(self.config):
            context = self.context(self.text_encoder(input_ids))
            output = self.step(inputs, batch.plucker.to(device), timesteps, context).float()
        return self.objective.errors(noisy, output, self.objective.target(clean, noise, times), times), times

    def _samples_panel(self, batch: LatentBatch, generator: torch.Generator) -> np.ndarray:
        """The first unseen objects through the autoencoder, each beside a sample from its caption."""
        spec, count = self.spec, min(_PANEL_OBJECTS, len(batch.captions))
        latents = generate_latents(
            self.denoiser, self.text_encoder, self.tokenizer, spec, list(batch.captions[:count]), generator,
            steps=self.config.evaluation_steps,
        )  # fmt: skip
        generated = generated_view_cameras(self.elevation_deg, spec.distance, spec.geometry.views)
        decoded = self._images(batch.latents[:count], Cameras(*(values[:count] for values in batch.cameras)))
        return comparison_panel(torch.cat([decoded, self._images(latents, generated)], dim=1), objects=count)

    def _images(self, latents: Tensor, cameras: Cameras) -> Tensor:
        """Latents [P, V, C, h, w] seen from their own cameras: [P, V, 3, H, W]."""
        device, geometry = self.config.run.device, self.spec.geometry
        cameras = Cameras(*(values.to(device) for values in cameras))
        gaussians = grid_to_gaussians(self.gsvae.decode(latents.to(device)), cameras, geometry)
        return render(gaussians, cameras, geometry.grid_size, geometry.grid_size, geometry).rgb

    def _parent_files(self) -> dict[str, Any]:
        return {"recon": self.recon.facts["files"], "vae": latents_of(self.vae.facts)}

    def _objects(self, validation: bool) -> Dataset:
        objects = dataset(self.config.data, self.config.backbone, validation)
        require(objects.source, self.needs, self.name, self.config.data.source)
        return objects

    def _cache(self, validation: bool) -> LatentCache:
        if validation not in self._caches:
            data, objects = self.config.data, self._objects(validation)
            origin = {
                "compat": data.compat,
                "precision": self.config.optim.precision,
                "spec": self.spec.to_dict(),
                "parents": self._parent_files(),
            }
            with mixed_precision(self.config):
                self._caches[validation] = cached_latents(
                    self.config.run.out / ("latents_validation" if validation else "latents"),
                    objects,
                    data.first_views or objects.source.layout.ring_views,
                    self.spec,
                    (self.gsrecon, self.gsvae),
                    origin,
                    data.skip_broken,
                )
        return self._caches[validation]


def autoencoder_config(spec: BackboneSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """The backbone's autoencoder, with the tiny decoder that a finished one has."""
    config = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    return {**config, "tiny_decoder": facts["tiny_decoder"]} if facts.get("tiny_decoder") else config


def same_denoiser(first: BackboneSpec, second: BackboneSpec) -> bool:
    """Whether the networks of one can go on as the other: what lies beside the denoiser may differ."""
    fields = ("family", "latent_channels", "latent_size", "schedule", "geometry", "text", "denoiser")
    scale = [(spec.gsvae["scaling_factor"], spec.gsvae.get("shift_factor") or 0.0) for spec in (first, second)]
    return scale[0] == scale[1] and all(getattr(first, name) == getattr(second, name) for name in fields)
