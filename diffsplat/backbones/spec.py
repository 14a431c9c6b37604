"""What a backbone is: networks, noise process, geometry, and the defaults of a request."""

import dataclasses
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffsplat.backbones.text import TextSpec

PixelRule = Literal["legacy", "pixel_centers"]
Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]  # sample: the clean latents x0
Family = Literal["unet", "pixart", "sd3"]
ControlType = Literal["depth", "normal", "canny"]

PLUCKER_CHANNELS = 6
MASK_CHANNELS = 1  # of image models: 0 on the condition view, 1 on the generated ones


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process a denoiser was trained on, and what its samplers inherit from it."""

    process: Literal["vp", "flow"]
    prediction_type: Prediction
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"  # vp only
    beta_start: float = 0.00085
    beta_end: float = 0.012
    ddim_final_alpha_one: bool = False  # alpha-bar after the last DDIM step: 1, or that of timestep 0
    ddim_clip_x0: bool = False
    shift: float = 1.0  # flow only
    num_train_timesteps: int = 1000
    timestep_spacing: Literal["trailing", "linspace"] = "trailing"  # linspace: published as "common_tricks: false"

    def __post_init__(self) -> None:
        if self.timestep_spacing not in ("trailing", "linspace"):
            raise ValueError(f"timestep_spacing = {self.timestep_spacing!r}: must be trailing or linspace")
        if self.timestep_spacing == "linspace" and self.process != "vp":
            raise ValueError(f"timestep_spacing = 'linspace': must be trailing for the process {self.process!r}")
        predictions = {"vp": ("epsilon", "v_prediction", "sample"), "flow": ("velocity",)}[self.process]
        if self.prediction_type not in predictions:
            allowed = " or ".join(predictions)
            raise ValueError(
                f"prediction_type = {self.prediction_type!r}: must be {allowed} for the process {self.process!r}"
            )

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names a request may choose from."""
        if self.timestep_spacing == "linspace":  # the published default of the DPM-Solvers alone
            return ("dpmsolver++", "sde-dpmsolver++")
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
    ray_pixel_rule: PixelRule = "legacy"  # of Pluecker rays
    unproject_pixel_rule: PixelRule = "legacy"
    unit_quats: bool = False  # False: the length of the decoded quaternion changes the splat's shape
    eps2d: float = 0.0  # dilation of the projected covariance, square pixels
    opacity_compensation: bool = True  # multiply opacity by sqrt(det / (det + 1e-6) + 1e-6) of the projected covariance
    near_plane: float = 0.2


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: networks, noise process, geometry, and the defaults of a request."""

    name: str
    family: Family
    latent_channels: int
    latent_size: int
    schedule: NoiseSchedule
    geometry: SplatGeometry
    text: TextSpec
    denoiser: dict[str, Any]  # constructor arguments of the family's stock diffusers class
    gsvae: dict[str, Any]  # constructor arguments of diffusers' AutoencoderKL
    gsrecon: dict[str, Any]  # fields of GSReconConfig
    image_encoder: bool = False  # the base image VAE's encoder, which has the architecture of `gsvae`
    controls: tuple[ControlType, ...] = ()  # types of ControlNets
    elevest: dict[str, Any] | None = None  # fields of ElevEstConfig, its `backbone` a dict too
    # defaults of a request
    scheduler: str = "sde-dpmsolver++"
    steps: int = 20
    guidance_scale: float = 7.5
    eta: float = 1.0
    elevation_deg: float | None = 10.0  # None: a request names or estimates it
    distance: float = 1.4

    @property
    def is_image_conditioned(self) -> bool:
        """Whether the denoiser has a mask channel, and so a condition view beside the generated ones."""
        return self.denoiser["in_channels"] > self.latent_channels + PLUCKER_CHANNELS

    @property
    def image_size(self) -> int:
        """Pixels along a side of an image that the base image VAE encodes to `latent_size`."""
        return self.latent_size * 2 ** (len(self.gsvae["block_out_channels"]) - 1)

    @property
    def scaled_shift(self) -> float:
        """The VAE's shift in units of scaled latents, which encoding subtracts; 0 except for SD3."""
        return float(self.gsvae["scaling_factor"] * (self.gsvae.get("shift_factor") or 0.0))

    @property
    def hint_size(self) -> int:
        """Pixels along a side of a control map: the stock hint encoder makes an eighth of it."""
        return 8 * self.latent_size

    @property
    def request_defaults(self) -> dict[str, Any]:
        """Defaults of the fields that a request leaves open."""
        names = ("scheduler", "steps", "guidance_scale", "eta", "elevation_deg", "distance")
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", tuple(self.controls))  # JSON gives a list
        if self.controls and (self.family != "unet" or self.is_image_conditioned):
            raise ValueError(f"controls = {self.controls}: ControlNets are for UNets without a condition view")
        if self.is_image_conditioned and not self.image_encoder:
            raise ValueError("image_encoder = False: an image-conditioned backbone needs it")

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


def image_conditioned(spec: BackboneSpec) -> BackboneSpec:
    """The image-conditioned variant of a text backbone: one more mask channel, v-prediction, weaker guidance."""
    prediction: Prediction = "v_prediction" if spec.schedule.process == "vp" else "velocity"
    return replace(
        spec,
        name=f"{spec.name}_image",
        denoiser={**spec.denoiser, "in_channels": spec.denoiser["in_channels"] + 1},
        schedule=replace(spec.schedule, prediction_type=prediction),
        image_encoder=True,
        elevation_deg=None,
        guidance_scale=2.0,  # recommended; the reference leaves it at the text model's default
    )
