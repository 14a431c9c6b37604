"""Architecture facts of every backbone, on one page. A bundle carries a copy of its own entry (`bundle.json`).

Nothing here is a deployment or a training choice: those stand in `config.pbtxt` and in the training presets.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

PixelRule = Literal["legacy", "pixel_centers"]
Prediction = Literal["epsilon", "v_prediction", "velocity"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process a denoiser was trained on, and what its samplers inherit from it."""

    process: Literal["vp", "flow"]
    prediction_type: Prediction
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"  # vp only
    beta_start: float = 0.00085
    beta_end: float = 0.012
    ddim_final_alpha_one: bool = False  # alpha-bar behind the last DDIM step: 1, or that of timestep 0
    ddim_clip_x0: bool = False
    shift: float = 1.0  # flow only
    num_train_timesteps: int = 1000

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names a request may choose from."""
        if self.process == "vp":
            return ("ddim", "dpmsolver++", "sde-dpmsolver++", "edm")
        return ("flow", "dpmsolver++", "sde-dpmsolver++")


@dataclass(frozen=True)
class SplatGeometry:
    """How a grid of 12 channels becomes Gaussians and how they are drawn; a property of the weights."""

    grid_size: int = 256  # pixels of one view = Gaussians along one side
    views: int = 4
    scale_min: float = 0.0005  # world units
    scale_max: float = 0.02
    ray_pixel_rule: PixelRule = "legacy"  # Pluecker rays
    unproject_pixel_rule: PixelRule = "legacy"
    unit_quats: bool = False  # False: the length of the decoded quaternion changes the splat's shape
    eps2d: float = 0.0  # dilation of the projected covariance, square pixels
    opacity_compensation: bool = True  # multiply opacity by sqrt(det / (det + 1e-6) + 1e-6) of the projected covariance
    near_plane: float = 0.2


@dataclass(frozen=True)
class TextEncoderSpec:
    """One text encoder. `config` are the constructor arguments of the transformers class."""

    kind: Literal["clip"]
    max_tokens: int
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: networks, noise process, geometry, and the defaults of a request."""

    name: str
    family: Literal["unet"]
    latent_channels: int
    latent_size: int
    schedule: NoiseSchedule
    geometry: SplatGeometry
    text_encoder: TextEncoderSpec
    denoiser: dict[str, Any]  # constructor arguments of the stock diffusers class
    gsvae: dict[str, Any]  # constructor arguments of diffusers' AutoencoderKL
    gsrecon: dict[str, Any]  # fields of GSReconConfig
    # defaults of a request
    scheduler: str = "sde-dpmsolver++"
    steps: int = 20
    guidance_scale: float = 7.5
    eta: float = 1.0
    elevation_deg: float = 10.0
    distance: float = 1.4

    @property
    def request_defaults(self) -> dict[str, Any]:
        """What a request leaves open."""
        names = ("scheduler", "steps", "guidance_scale", "eta", "elevation_deg", "distance")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BackboneSpec":
        """Inverse of `to_dict`; ValueError names an unknown or missing field."""
        return _from_dict(cls, values)


def _from_dict(cls: Any, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}: it has {', '.join(hints)}")
    built = {}
    for name, value in values.items():
        built[name] = _from_dict(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None


def _unet(latent_channels: int, latent_size: int, **config: Any) -> dict[str, Any]:
    return {"in_channels": latent_channels + 6, "out_channels": latent_channels, "sample_size": latent_size, **config}


_SD15_LATENT = 4

SD15 = BackboneSpec(
    name="sd15",
    family="unet",
    latent_channels=_SD15_LATENT,
    latent_size=32,
    schedule=NoiseSchedule("vp", "epsilon"),
    geometry=SplatGeometry(),
    text_encoder=TextEncoderSpec(
        "clip",
        77,
        {
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
        },
    ),
    denoiser=_unet(
        _SD15_LATENT,
        32,
        block_out_channels=[320, 640, 1280, 1280],
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae={
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": _SD15_LATENT,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
        "sample_size": 256,
    },
    gsrecon={"input_size": 256, "patch_size": 8, "dim": 512, "num_blocks": 12, "num_heads": 8},
)

_PICO_LATENT = 4
_PICO_GRID = 32

# The network of the tests: 32 px grids, 8 x 8 latents, about 3 M parameters in all, trained on procedural shapes.
PICO = BackboneSpec(
    name="pico",
    family="unet",
    latent_channels=_PICO_LATENT,
    latent_size=8,
    # the cosine schedule spends half of its time below SNR 1, which suits latents this small, and ends in pure noise
    schedule=NoiseSchedule("vp", "v_prediction", "squaredcos_cap_v2"),
    geometry=SplatGeometry(
        grid_size=_PICO_GRID,
        scale_min=0.0005 * 256 / _PICO_GRID,  # the scale range follows the pixel footprint
        scale_max=0.02 * 256 / _PICO_GRID,
        ray_pixel_rule="pixel_centers",
        unproject_pixel_rule="pixel_centers",
        unit_quats=True,
        opacity_compensation=False,
        near_plane=0.01,
    ),
    text_encoder=TextEncoderSpec(
        "clip",
        16,
        {
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 16,
            "hidden_act": "quick_gelu",
        },
    ),
    denoiser=_unet(
        _PICO_LATENT,
        8,
        block_out_channels=[48, 96],
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=96,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae={
        "block_out_channels": [24, 48, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": _PICO_LATENT,
        "norm_num_groups": 8,
        "scaling_factor": 1.0,  # measured and written by training
        "sample_size": _PICO_GRID,
    },
    gsrecon={"input_size": _PICO_GRID, "patch_size": 4, "dim": 96, "num_blocks": 3, "num_heads": 4},
    scheduler="dpmsolver++",
    steps=16,
    guidance_scale=3.0,
)

_NANO_LATENT = 16
_NANO_GRID = 64

# The network of the demo: 64 px grids, 8 x 8 latents, about 16 M parameters in all, trained on procedural objects.
NANO = BackboneSpec(
    name="nano",
    family="unet",
    latent_channels=_NANO_LATENT,
    latent_size=8,
    schedule=PICO.schedule,
    geometry=dataclasses.replace(
        PICO.geometry,
        grid_size=_NANO_GRID,
        scale_min=0.0005 * 256 / _NANO_GRID,
        scale_max=0.02 * 256 / _NANO_GRID,
    ),
    text_encoder=TextEncoderSpec(
        "clip",
        24,
        {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "hidden_act": "quick_gelu",
        },
    ),
    denoiser=_unet(
        _NANO_LATENT,
        8,
        block_out_channels=[96, 192],
        layers_per_block=1,
        attention_head_dim=[3, 6],  # numbers of heads, whatever the name says
        norm_num_groups=8,
        cross_attention_dim=192,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae={
        "block_out_channels": [32, 64, 96, 128],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": _NANO_LATENT,
        "norm_num_groups": 1,  # groups hide from the decoder how bright a colour is; it learns them twice as fast so
        "scaling_factor": 1.0,  # measured and written by training
        "sample_size": _NANO_GRID,
    },
    gsrecon={"input_size": _NANO_GRID, "patch_size": 4, "dim": 128, "num_blocks": 3, "num_heads": 4},
    scheduler="dpmsolver++",
    steps=20,
    guidance_scale=3.0,
)

BACKBONES: dict[str, BackboneSpec] = {spec.name: spec for spec in (SD15, PICO, NANO)}
