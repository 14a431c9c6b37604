"""ControlNet: a normal, depth or canny map of view 0 steers all views. Stock diffusers model, multi-view attention.

Axes: B objects, R rows (request, guidance branch), V views, L text tokens, P width of the packed text context, N
residuals, K numbers of all residuals of a row.

    hint [B, 3, H, W] -> HintEncoder -> hints [B, V, C, h, w]                                      once per request
    text embeddings [R, L, D] -> TextContext(controlnet) -> context [R, L, P]                      once per request
    latents, plucker, timesteps, context, hints, scales (, added) -> ControlStep -> residuals [R, K]   once per step
    what DenoiserStep takes, residuals -> ControlledDenoiserStep -> prediction [R, V, C, h, w]     once per step

Networks are typed `Any`: diffusers hides the attributes of its models from type checkers.

Residuals travel as one tensor, so that rows without a ControlNet, or with another one, are zeros or slices of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.control_inputs import residual_shapes
from diffsplat.denoisers.shared_weights import per_view, share_weights_for_step, takes_added_embedding
from diffsplat.denoisers.unet import TEXT_IS_PACKED, DenoiserStep, check_multiview_attention, set_multiview_attention

HINT_CHANNELS = (16, 32, 96, 256)  # widths of the official hint encoders
_UNET_ALONE = ("sample_size", "out_channels", "up_block_types", "center_input_sample")


def controlnet_config(unet_config: Mapping[str, Any], hint_channels: tuple[int, ...] = HINT_CHANNELS) -> dict[str, Any]:
    """Constructor arguments of the stock ControlNetModel that fits a stock UNet built from `unet_config`."""
    config = {name: value for name, value in unet_config.items() if name not in _UNET_ALONE}
    return {**config, "conditioning_embedding_out_channels": hint_channels}


def build_controlnet(spec: BackboneSpec) -> Any:
    """The ControlNet of a text backbone, random weights and zero residuals; official state-dict names.

    Raises:
        ValueError: a backbone without published ControlNet design (other than a UNet, or with a condition view).
    """
    if spec.family != "unet" or spec.is_image_conditioned:
        raise ValueError(f"backbone {spec.name!r}: a ControlNet needs a UNet without a condition view")
    controlnet = ControlNetModel(**controlnet_config(spec.denoiser))
    set_multiview_attention(controlnet, spec.geometry.views)
    return controlnet


def copy_encoder(controlnet: nn.Module, unet: nn.Module) -> None:
    """Start a new ControlNet as its UNet's encoder: every tensor that both have, from the input to the mid block.

    Its hint encoder keeps random weights, and the layers that give hints and residuals their zeros.

    Raises:
        ValueError: a tensor of the encoder is missing or has another shape.
    """
    source, target = unet.state_dict(), controlnet.state_dict()
    encoder = [name for name in target if not name.startswith("controlnet_")]
    wrong = [name for name in encoder if name not in source or source[name].shape != target[name].shape]
    if wrong:
        raise ValueError(f"the UNet's encoder lacks {', '.join(wrong[:4])} in the ControlNet's shape")
    for name in encoder:
        target[name].copy_(source[name])  # shares the network's memory


def pack_residuals(residuals: list[Tensor], num_views: int) -> Tensor:
    """Residuals [R * V, C, h, w] of different shapes -> [R, K]."""
    return torch.cat([residual.unflatten(0, (-1, num_views)).flatten(1) for residual in residuals], dim=1)


def unpack_residuals(packed: Tensor, shapes: list[tuple[int, int, int]], num_views: int) -> list[Tensor]:
    """Inverse of `pack_residuals`, for shapes as in `residual_shapes`."""
    sizes = [num_views * channels * height * width for channels, height, width in shapes]
    assert packed.shape[1] == sum(sizes), f"residuals {tuple(packed.shape)}, {sum(sizes)} numbers expected"
    return [part.reshape(-1, *shape) for part, shape in zip(packed.split(sizes, dim=1), shapes, strict=True)]


class HintEncoder(nn.Module):
    """Hint images to features, which do not depend on step or guidance branch. Layers are the ControlNet's own."""

    def __init__(self, controlnet: Any, num_views: int) -> None:
        super().__init__()
        self.encoder = controlnet.controlnet_cond_embedding
        self.num_views = num_views

    def forward(self, hint: Tensor) -> Tensor:
        """Hints of view 0, [B, 3, 8h, 8w] in [0, 1] (not [-1, 1]) -> [B, V, C, h, w].

        The other views' hint is white, as in training: one more image in the batch, however many views and objects.
        """
        encoded = self.encoder(torch.cat([hint, torch.ones_like(hint[:1])]))  # [B + 1, C, h, w]
        first, white = encoded[:-1, None], encoded[-1:, None]
        return torch.cat([first, white.expand(hint.shape[0], self.num_views - 1, -1, -1, -1)], dim=1)


class ControlStep(nn.Module):
    """One evaluation of a multi-view ControlNet for R rows that may be at different timesteps."""

    def __init__(self, controlnet: Any, num_views: int) -> None:
        super().__init__()
        check_multiview_attention(controlnet, num_views)
        self.controlnet = share_weights_for_step(controlnet, controlnet_cond_embedding=nn.Identity())
        self.num_views = num_views
        self.residuals = len(controlnet.controlnet_down_blocks) + 1
        self.extra_inputs = ("added",) if takes_added_embedding(controlnet) else ()

    def forward(
        self,
        latents: Tensor,
        plucker: Tensor,
        timesteps: Tensor,
        context: Tensor,
        hints: Tensor,
        scales: Tensor,
        *extra: Tensor,
    ) -> Tensor:
        """Residuals of the rows' views.

        Args:
            latents: [R, V, C, h, w], already multiplied by the sampler's c_in.
            plucker: [R, V, 6, h, w], rays of the views.
            timesteps: [R] float32.
            context: [R, L, P] from `TextContext` of the ControlNet, not of the UNet.
            hints: [R, V, C', h, w] from `HintEncoder`.
            scales: [R, N] from `control_scales`.
            *extra: for SDXL `added` [R, E], from `AddedEmbedding` of the ControlNet.

        Returns:
            [R, K], packed.
        """
        assert len(extra) == len(self.extra_inputs), f"{len(extra)} inputs for {self.extra_inputs}"
        down, mid = self.controlnet(
            torch.cat([latents, plucker], dim=2).flatten(0, 1),
            timesteps[:, None].expand(-1, self.num_views).reshape(-1),
            encoder_hidden_states=context,
            controlnet_cond=hints.flatten(0, 1),
            timestep_cond=per_view(extra[0], self.num_views) if extra else None,
            cross_attention_kwargs={TEXT_IS_PACKED: True},
            return_dict=False,
        )
        per_residual = per_view(scales, self.num_views)[..., None, None, None].unbind(1)  # N of [R * V, 1, 1, 1]
        scaled = [residual * scale for residual, scale in zip([*down, mid], per_residual, strict=True)]
        return pack_residuals(scaled, self.num_views)


class ControlledDenoiserStep(nn.Module):
    """A `DenoiserStep` that adds residuals to the UNet's skip and mid tensors; zeros leave it as it is."""

    def __init__(self, unet: Any, num_views: int) -> None:
        super().__init__()
        self.step = DenoiserStep(unet, num_views)
        if self.step.condition_views:
            raise ValueError(f"in_channels = {unet.config.in_channels}: a ControlNet has no condition view")
        self.num_views = num_views
        size = unet.config.sample_size  # of the latents; stated rather than looked up, so that a traced graph is static
        self.shapes = residual_shapes(unet.config, size, size)
        self.extra_inputs = (*self.step.extra_inputs, "residuals")

    def forward(self, latents: Tensor, plucker: Tensor, timesteps: Tensor, context: Tensor, *extra: Tensor) -> Tensor:
        """As `DenoiserStep`, with `residuals` [R, K] from `ControlStep` as the last input."""
        *others, packed = extra
        *down, mid = unpack_residuals(packed, self.shapes, self.num_views)
        return self.step.predict(
            latents,
            plucker,
            timesteps,
            context,
            *others,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=mid,
        )
