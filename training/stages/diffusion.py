"""The denoiser of any family on cached latents: text or image conditioned, with or without a rendering loss."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.geometry.cameras import Cameras
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import build_gsvae
from training.assemble import TOKENIZER_FILE
from training.checkpoint import save_finished
from training.conditions import StoredText, condition_latents
from training.config.diffusion import DiffusionConfig
from training.data.control_maps import ControlMaps
from training.data.dataset import Dataset
from training.data.record import TRAINING_MAPS
from training.data.source import require
from training.denoiser import TrainedDenoiser
from training.latents import EncoderNetworks, LatentBatch, LatentCache, LatentStream, cached_latents
from training.objectives import Dropped, Objective, drop_conditions, rendering_snr_weights
from training.optim import decay_groups
from training.parents import latents_of, open_parent
from training.sampling import generate_latents
from training.stage import Evaluation
from training.stages.common import dataset, mixed_precision, spec_of
from training.stages.diffusion_panels import asked_objects, beside, generated_cameras, images_of
from training.stages.diffusion_rendering import RenderedEstimate
from training.stages.diffusion_start import (
    adapted,
    base_of,
    may_start,
    open_image_encoder,
    open_start,
    open_text,
    start_denoiser,
    start_text,
)  # fmt: skip

EVALUATED_TIMES = 4  # draws of timestep and noise per validation object
_PANEL_OBJECTS = 12


class Guess(NamedTuple):
    """What a denoiser says about noised objects."""

    times: Tensor  # [B] rows of the objective's table
    noisy: Tensor  # [B, V, C, h, w]
    output: Tensor  # [B, V, C, h, w] of the network, float32
    errors: Tensor  # [B] unweighted squared errors


class DiffusionStage:
    """Trains a denoiser, and its text encoder where that is not frozen."""

    name = "diffusion"
    device = torch.device("cpu")  # the loop sets it before `build`
    updates = 0  # so far; set by the loop before each loss

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        spec = spec_of(config)
        self.recon, self.vae = open_parent(config.recon, "gsrecon"), open_parent(config.vae, "gsvae")
        if self.vae.facts["recon"] != self.recon.facts["files"]:
            raise ValueError(f"vae = {config.vae} was trained on another recon stage than {config.recon}")
        self.start = open_start(config)
        self.text_facts = open_text(config, spec, self.start)
        self.spec = dataclasses.replace(
            spec,
            gsvae={**autoencoder_config(spec, self.vae.facts), **self.vae.facts["latent_scale"]},
            text=self.text_facts.spec,
        )
        if self.start is not None:
            before = BackboneSpec.from_dict(self.start.facts["spec"])
            if not may_start(self.spec, adapted(before, self.spec) if config.adapt else before):
                raise ValueError(
                    f"start = {config.start} was trained with another spec than {spec.name} on {config.vae} has"
                )
        self.image_base = base_of(config, "the images' autoencoder") if spec.is_image_conditioned else None
        objective = dataclasses.replace(config.objective, stratified=config.objective.stratified and not config.compat)
        self.objective = Objective.of(spec.schedule, objective)
        self.needs = TRAINING_MAPS if config.text == "stored" else TRAINING_MAPS | {"caption"}
        self._caches: dict[bool, LatentCache] = {}

    def build(self) -> nn.Module:
        """The trained networks with their first weights, beside the frozen ones."""
        device, spec, config = self.device, self.spec, self.config
        gsrecon: Any = self.recon.load("gsrecon", build_gsrecon(spec)).to(device)
        gsvae: Any = self.vae.load("gsvae", build_gsvae(spec)).to(device)
        self.gsvae = gsvae
        image_encoder = None if self.image_base is None else open_image_encoder(self.image_base, spec).to(device)
        self.encoders = EncoderNetworks(gsrecon, gsvae, image_encoder)
        self.rendered: RenderedEstimate | None = None
        if config.rendering.probability:
            self.rendered = RenderedEstimate(config.rendering, spec, gsvae, config.compat)
            self.rendered.loss.to(device)
        self.denoiser = start_denoiser(config, spec, self.start).to(device)
        self.predict = TrainedDenoiser(spec, self.denoiser)
        self.text, text_encoder = start_text(config, spec, self.text_facts, self.start, device)
        trained = {"denoiser": self.denoiser}
        if text_encoder is not None:
            trained[TEXT_ENCODER] = text_encoder
        self.trained = nn.ModuleDict(trained)
        return self.trained.train()

    def param_groups(self) -> list[dict[str, Any]]:
        """All trained networks."""
        return decay_groups(self.trained.values(), self.config.optim.weight_decay)

    def stream(self, rank: int, world_size: int) -> LatentStream:
        """Cached latents with captions, and true views where there is a rendering loss."""
        data, objects = self.config.data, self._objects(False)
        return LatentStream(
            self._cache(False), objects, self.rendered is not None, self.maps(objects), batch_size=data.batch_size,
            seed=self.config.run.seed, rank=rank, world_size=world_size, workers=data.workers,
            prefetch=data.prefetch, skip_broken=data.skip_broken,
        )  # fmt: skip

    def maps(self, objects: Dataset) -> ControlMaps | None:
        """Control maps that belong to the batches; a ControlNet's stage has some."""
        return None

    def validation_batch(self) -> LatentBatch:
        """Unseen objects with their plainest captions."""
        cache, source = self._cache(True), self._objects(True).source
        numbers = cache.objects.tolist()
        captions = [source.caption(number, None) for number in numbers]
        return cache.batch(range(len(cache)), captions, [source.uid(number) for number in numbers])

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error of the prediction, one timestep per object, some conditions dropped; rendering loss."""
        options = self.config.rendering
        uniform = torch.rand(len(batch.uids), generator=generator)
        dropped = drop_conditions(uniform, self.config.dropout_rate, self.spec.is_image_conditioned)
        guess = self.guess(batch, dropped, generator)
        diffusion = (self.objective.loss_weights(guess.times) * guess.errors).mean()
        parts = {"mse": guess.errors.detach().mean()}
        if self.rendered is None:
            return diffusion, parts
        if not self.rendered.is_drawn(generator):
            return diffusion, {**parts, "render_loss": torch.zeros_like(diffusion)}
        assert batch.views is not None
        estimate = self.objective.clean_estimate(guess.noisy, guess.output, guess.times)
        rendered = self.rendered(estimate, batch.views.to(self.device), self.updates)
        weights = rendering_snr_weights(self.objective, guess.times, options.min_snr_gamma)
        render_loss = (weights * rendered.total).mean()
        parts["render_loss"] = render_loss.detach()
        if options.probability == 1.0:  # otherwise processes that draw differently would log different terms
            parts |= {name: term.mean() for name, term in rendered.parts.items()}
        return options.diffusion_weight * diffusion + options.render_weight * render_loss, parts

    def evaluate(self, batch: LatentBatch, generator: torch.Generator) -> Evaluation:
        """Error on unseen objects with and without their conditions, and samples beside what their latents hold."""
        kept = torch.zeros(len(batch.uids), dtype=torch.bool)
        cases = {"mse": Dropped(kept, kept), "mse_no_text": Dropped(~kept, kept)}
        if self.spec.is_image_conditioned:
            cases["mse_no_image"] = Dropped(kept, ~kept)
        scalars = {}
        for name, dropped in cases.items():
            noise = torch.Generator().manual_seed(generator.initial_seed())
            draws = [self.guess(batch, dropped, noise).errors.mean() for _ in range(EVALUATED_TIMES)]
            scalars[name] = torch.stack(draws).mean().item()
        panels = {}
        for scale in self.config.evaluation_guidance or (self.spec.guidance_scale,):
            noise = torch.Generator().manual_seed(generator.initial_seed())
            panels[f"decoded_beside_generated_cfg{scale:g}"] = self._samples_panel(batch, noise, scale)
        return Evaluation(scalars, panels)

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the averaged networks, a trained tokenizer, and the spec with latent scale and vocabulary."""
        lineage = {**facts, "spec": self.spec.to_dict(), "parents": self._parent_files()}
        lineage["text"] = self.text_facts.identity
        tokenizer = self.text_facts.tokenizer_json
        save_finished(out, dict(self.trained.items()), lineage, {TOKENIZER_FILE: tokenizer} if tokenizer else {})

    def guess(self, batch: LatentBatch, dropped: Dropped, generator: torch.Generator) -> Guess:
        """Noise a batch at freshly drawn timesteps and let the denoiser predict.

        Args:
            batch: B objects, on the host.
            dropped: Which of them lose text or image.
            generator: Of timesteps and noise, on the host.
        """
        device, objective = self.device, self.objective
        clean = batch.latents.to(device)
        times = objective.sample_t(len(clean), generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = times.to(device)
        noisy = objective.add_noise(clean, noise, times)
        images = None if batch.image_moments is None else self._images(batch.image_moments, dropped.image, generator)
        with mixed_precision(self.config):
            text = self.text.features(batch.captions, batch.uids, dropped.text)
            inputs = objective.network_input(noisy, times)
            timesteps = objective.network_timesteps(times)
            output = self.predict_views(batch, inputs, timesteps, text, images).float()
        errors = objective.errors(noisy, output, objective.target(clean, noise, times), times)
        return Guess(times, noisy, output, errors)

    def predict_views(
        self, batch: LatentBatch, inputs: Tensor, timesteps: Tensor, text: Any, images: Tensor | None
    ) -> Tensor:
        """The denoiser's output for the views of a batch; see `TrainedDenoiser`."""
        return self.predict(inputs, batch.plucker.to(self.device), timesteps, text, images)

    def _images(self, moments: Tensor, dropped: Tensor, generator: torch.Generator) -> Tensor:
        """Condition latents [B, C, h, w]; serving does not subtract SD3's shift, published training did."""
        shift = self.spec.scaled_shift if self.config.compat else 0.0
        return condition_latents(moments.to(self.device), dropped, shift, generator)

    def _samples_panel(self, batch: LatentBatch, generator: torch.Generator, guidance_scale: float) -> Any:
        """The first unseen objects through the autoencoder, each beside a sample of the denoiser."""
        spec, count = self.spec, min(_PANEL_OBJECTS, len(batch.uids))
        shown = self._first(batch, count)
        means = None if batch.image_moments is None else batch.image_moments[:count, 0]  # as serving takes it
        asked = asked_objects(shown, self.text, spec, means)
        latents = generate_latents(
            self.denoiser, spec, asked, generator, self.config.evaluation_steps, guidance_scale
        )  # fmt: skip
        generated = images_of(self.gsvae, latents, generated_cameras(asked, spec), spec.geometry)
        return beside(images_of(self.gsvae, shown.latents, shown.cameras, spec.geometry), generated)

    def _first(self, batch: LatentBatch, count: int) -> LatentBatch:
        """The first objects of a batch, without their conditions."""
        return LatentBatch(
            batch.latents[:count], batch.plucker[:count], Cameras(*(values[:count] for values in batch.cameras)),
            batch.captions[:count], batch.uids[:count],
        )  # fmt: skip

    def _parent_files(self) -> dict[str, Any]:
        return {"recon": self.recon.facts["files"], "vae": latents_of(self.vae.facts)}

    def _objects(self, validation: bool) -> Dataset:
        objects = dataset(self.config.data, self.config.backbone, validation)
        require(objects.source, frozenset(self.needs), self.name, self.config.data.source)
        return objects

    def _cache(self, validation: bool) -> LatentCache:
        if validation not in self._caches:
            data, objects = self.config.data, self._objects(validation)
            if isinstance(self.text, StoredText):  # before anything is encoded
                self.text.store.check([objects.source.uid(index) for index in range(len(objects))])
            origin = {
                "compat": data.compat,
                "precision": self.config.optim.precision,
                "spec": self.spec.to_dict(),
                "parents": self._parent_files(),
                "images": None if self.image_base is None else str(self.image_base),
            }
            with mixed_precision(self.config):
                self._caches[validation] = cached_latents(
                    self.config.run.out / ("latents_validation" if validation else "latents"),
                    objects,
                    data.first_views or objects.source.layout.ring_views,
                    self.spec,
                    self.encoders,
                    origin,
                    data.skip_broken,
                    0 if validation else self.config.views_each,
                )
        return self._caches[validation]


def autoencoder_config(spec: BackboneSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """The backbone's autoencoder, with the tiny decoder that a finished one has."""
    config = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    return {**config, "tiny_decoder": facts["tiny_decoder"]} if facts.get("tiny_decoder") else config
