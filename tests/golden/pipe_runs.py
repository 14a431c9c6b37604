"""The reference's sampling runs (`pipe_*` files) as requests to the stages that are served.

A file's networks become graphs, its embeddings a request's text, and the tensors that the reference drew its noise:
`DenoiseStage` then runs the very loop of the service. The base image VAE is reached through `ImageEncoderStage`.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffsplat_client.request import GenerationRequest
from diffusers import AutoencoderKL, ControlNetModel
from PIL import Image
from torch import Tensor, nn

from diffsplat.backbones import SD15, BackboneSpec, NoiseSchedule, SplatGeometry, TextEncoderSpec, TextSpec
from diffsplat.backbones.spec import ControlType, Family
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.precision import cast_network, in_precision
from diffsplat.denoisers.control_inputs import control_graphs
from diffsplat.denoisers.controlnet import controlnet_config
from diffsplat.denoisers.graph_inputs import STEP, request_graphs
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import set_multiview_attention
from diffsplat.denoisers.view_inputs import split_views, stock_config
from diffsplat.geometry.cameras import generated_view_cameras, plucker_rays
from diffsplat.graph import Precision
from diffsplat.images.vae_encoder import ImageEncoder
from diffsplat.networks import FLOAT32_PARTS, build_graph_module, served_precision
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.images import ImageEncoderStage
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import TextFeatures

CONTROL: ControlType = "normal"  # a file does not say what its map shows, and no network depends on it

# a case's options and their defaults; None: required
OPTIONS: dict[str, Any] = {
    "B": 1,
    "seed": 0,
    "scheduler_type": None,
    "num_inference_steps": None,
    "guidance_scale": None,
    "prediction_type": "",
    "common_tricks": True,
    "eta": 0.0,
    "triangle_cfg_scaling": False,
    "min_guidance_scale": 1.0,
    "elevation": None,
    "distance": SD15.distance,
    "controlnet_scale": 1.0,
    "guess_mode": False,
    "init_std": 0.0,
    "init_noise_strength": 0.98,
    "init_bg": 0.0,
}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(file, "PNG")
    return file.getvalue()


_WHITE = _png()  # stands for an image that is given to the stage as latents


class RecordedNoise:
    """The tensors of one object that the reference drew, in their order."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors: Iterator[Tensor] = iter(tensors)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next one; more draws than the reference made, or of another shape, fail."""
        tensor = next(self._tensors)
        assert tensor.shape == tuple(shape), f"a draw of {tuple(shape)}, the reference drew {tuple(tensor.shape)}"
        return tensor

    def left(self) -> int:
        """How many were not drawn."""
        return len(list(self._tensors))


class PipeJob(NamedTuple):
    """A job and its noise."""

    job: DenoiseJob
    noise: RecordedNoise


class PipeStage:
    """`DenoiseStage` with the networks of one file, for the cases that share a noise schedule."""

    def __init__(
        self,
        file: Any,
        schedule: NoiseSchedule,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.file = file
        self.precision = precision
        self.device = device
        self.spec = _spec(file, schedule)
        network = build_denoiser(self.spec)
        (name,) = {"unet", "transformer"} & {key.split("/")[1] for key in file.tensors if key.startswith("weights/")}
        network.load_state_dict(file.weights(name))  # strict
        graphs = self._graphs("denoiser", (*request_graphs(self.spec), STEP), network)
        if self.spec.controls:
            controlnet = _controlnet(file, self.spec)
            graphs |= self._graphs(f"controlnet_{CONTROL}", control_graphs(self.spec, CONTROL), controlnet)
        self.stage = DenoiseStage(self.spec, graphs)
        self.network_inputs: list[Tensor] = []  # of every call of the denoiser, [R * W, C', h, w]
        layers = graphs[STEP].module.named_modules()
        first = next(layer for name, layer in layers if name.endswith((".conv_in", ".pos_embed")))
        first.register_forward_pre_hook(self._see)

    def _graphs(self, owner: str, names: Iterable[str], network: nn.Module) -> dict[str, TorchGraph]:
        """Graphs of a network as a bundle's would be loaded in this precision."""
        precision = served_precision(owner, self.precision)
        cast_network(network, precision, FLOAT32_PARTS.get(owner, ())).to(self.device)
        modules = {name: build_graph_module(name, self.spec, network) for name in names}
        return {name: TorchGraph(name, in_precision(module, precision), precision) for name, module in modules.items()}

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (seen,) = inputs
        if self.spec.family != "unet":  # the views of an object lie in one tall image
            seen = split_views(seen, self.spec.geometry.views + self.spec.is_image_conditioned).flatten(0, 1)
        self.network_inputs.append(seen)

    def start(self, case: str) -> list[PipeJob]:
        """One job per object of a case."""
        given, options = self.file.case_in(case), case_options(self.file, case)
        uses = self.file.config["noise_order"][case]
        drawn = [given[f"noise_{k:02d}"].unflatten(0, (-1, self.spec.geometry.views)) for k in range(len(uses))]
        assert len(drawn[0]) == options["B"], f"{case}: B = {options['B']}, noise of {len(drawn[0])} objects"
        jobs = []
        for index in range(options["B"]):
            noise = RecordedNoise([tensor[index] for tensor in drawn])
            work = self._work(options, {name: _of_object(value, index) for name, value in given.items()})
            self.stage.check(work)
            jobs.append(PipeJob(self.stage.start(work, noise), noise))
        return jobs

    def _work(self, options: dict[str, Any], given: dict[str, Tensor]) -> DenoiseWork:
        """One object's request, text and images."""
        request = GenerationRequest(
            prompt="golden",
            seed=options["seed"],
            scheduler=options["scheduler_type"],
            steps=options["num_inference_steps"],
            eta=options["eta"] or 0.0,
            guidance_scale=options["guidance_scale"],
            triangle_guidance=options["triangle_cfg_scaling"],
            min_guidance_scale=options["min_guidance_scale"],
            elevation_deg=options["elevation"],
            distance=options["distance"],
            control_type=CONTROL if self.spec.controls else None,
            control_scale=options["controlnet_scale"],
            guess_mode=options["guess_mode"],
            init_std=options["init_std"],
            init_noise_strength=options["init_noise_strength"],
            init_background=options["init_bg"],
        )
        embeddings = torch.cat([given["prompt_embeds"], given["negative_prompt_embeds"]])
        kept, pooled = torch.ones(embeddings.shape[:2]), torch.zeros(2, 0)
        if "prompt_attention_mask" in given:
            kept = torch.cat([given["prompt_attention_mask"], given["negative_prompt_attention_mask"]])
        if "pooled_prompt_embeds" in given:
            pooled = torch.cat([given["pooled_prompt_embeds"], given["negative_pooled_prompt_embeds"]])
        images = ImageFeatures(hint=given["image"].flatten(0, -4)[0] if self.spec.controls else None)
        if request.has_blob_start:
            asked = replace(request, image=_WHITE if self.spec.is_image_conditioned else None)
            images = images._replace(start_moments=self.images.run(asked).features.start_moments)
        if self.spec.is_image_conditioned:
            mean, _ = self.images.graphs["image_encoder"](given["image"].flatten(0, -4))
            images = images._replace(condition_latents=mean[0])
        return DenoiseWork(Envelope(request), TextFeatures(embeddings, kept != 0, pooled), images)

    @cached_property
    def images(self) -> ImageEncoderStage:
        """The image half of `encode`, with the file's base image VAE."""
        vae: Any = AutoencoderKL(**self.file.config["vae_config"])
        vae.eval().requires_grad_(False)
        vae.load_state_dict(self.file.weights("vae"))  # strict
        return ImageEncoderStage(self.spec, self._graphs("image_encoder", ["image_encoder"], ImageEncoder(vae)))


def case_options(file: Any, case: str) -> dict[str, Any]:
    """A case's options with every default; one that no request can carry is refused by name."""
    given = {name: value for name, value in file.config["cases"][case].items() if value is not None}
    unknown = {name: value for name, value in given.items() if name not in OPTIONS}
    assert not unknown, f"{case}: requests do not have {unknown}"
    options = {**OPTIONS, **given}
    missing = [name for name, value in options.items() if value is None]
    assert not missing, f"{case} does not say {missing}"
    return options


def plucker_of(spec: BackboneSpec, options: dict[str, Any]) -> Tensor:
    """Rays of all views of an object at the size where the reference makes them, [W, 6, H, W]."""
    cameras = generated_view_cameras(options["elevation"], options["distance"], spec.geometry.views)
    size = spec.geometry.grid_size
    rays = plucker_rays(*cameras, size, size, spec.geometry.ray_pixel_rule)
    return torch.cat([rays[: int(spec.is_image_conditioned)], rays])  # the condition view has those of view 0


def branches_first(rows: Tensor, branches: int, views: int) -> Tensor:
    """[objects * branches * W, ...] as a job batch has them -> the reference's order, all unconditional rows first."""
    return rows.unflatten(0, (-1, branches, views)).transpose(0, 1).flatten(0, 2)


def _of_object(value: Tensor, index: int) -> Tensor:
    """An input of one object; what is given once serves all objects."""
    return value if value.ndim == 0 or len(value) == 1 else value[index : index + 1]


def _controlnet(file: Any, spec: BackboneSpec) -> nn.Module:
    channels = tuple(file.config["conditioning_embedding_out_channels"])  # narrower than the official hint encoders
    controlnet: Any = ControlNetModel(**controlnet_config(spec.denoiser, channels))
    controlnet.eval().requires_grad_(False)
    set_multiview_attention(controlnet, spec.geometry.views)
    controlnet.load_state_dict(file.weights("controlnet"))  # strict
    network: nn.Module = controlnet
    return network


def _spec(file: Any, schedule: NoiseSchedule) -> BackboneSpec:
    config = file.config
    net = stock_config(config["net"])
    assert not net.get("use_additional_conditions"), "pipelines have no resolution and aspect ratio embeddings"
    family: Family = "unet" if "down_block_types" in net else "sd3" if "pos_embed_max_size" in net else "pixart"
    given = file.case_in(file.cases[0])
    width, tokens = given["prompt_embeds"].shape[-1], given["prompt_embeds"].shape[-2]
    pooled = given["pooled_prompt_embeds"].shape[-1] if "pooled_prompt_embeds" in given else 0
    encoder = TextEncoderSpec(
        "clip_projection" if pooled else "clip", tokens, {"hidden_size": width, "projection_dim": pooled}
    )
    return BackboneSpec(
        name=config["kind"],
        family=family,
        latent_channels=config["vae_config"]["latent_channels"],
        latent_size=net["sample_size"],
        schedule=schedule,
        geometry=SplatGeometry(grid_size=config["plucker_res"], views=config["num_views"]),
        text=TextSpec((encoder,)),
        denoiser=net,
        gsvae=config["vae_config"],
        gsrecon={},
        image_encoder=config["vae_used"],
        controls=(CONTROL,) if "conditioning_embedding_out_channels" in config else (),
    )
