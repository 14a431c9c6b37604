"""The views of an object as a denoiser sees them: input channels, the condition view, transformers' tall image.

Axes: R rows (request, guidance branch), V generated views, W views that attend to each other (V, or V + 1 with a
condition view in front), C latent channels, h w latent pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffsplat.backbones.spec import MASK_CHANNELS, PLUCKER_CHANNELS


def condition_views(in_channels: int, latent_channels: int) -> int:
    """Views that carry a clean condition image: 1 where a network's input has a mask channel, else 0.

    Raises:
        ValueError: the number of input channels is that of neither kind.
    """
    text = latent_channels + PLUCKER_CHANNELS
    if in_channels not in (text, text + MASK_CHANNELS):
        raise ValueError(f"in_channels = {in_channels}: must be {text} (text) or {text + MASK_CHANNELS} (image)")
    return (in_channels - text) // MASK_CHANNELS


def network_input(latents: Tensor, plucker: Tensor, condition_latents: Tensor | None = None) -> Tensor:
    """What a network sees of every view: latents, rays and, in image models, a mask along channels.

    Args:
        latents: [R, V, C, h, w] of the generated views, already multiplied by the sampler's c_in.
        plucker: [R, V, 6, h, w], rays of the generated views; the condition view shares those of view 0.
        condition_latents: [R, C, h, w] of the condition image, never noised or scaled by c_in; zeros in the
            unconditional branch and where a request has no image; None for a text model.

    Returns:
        [R, W, C + 6 (+ 1), h, w], the condition view first.
    """
    if condition_latents is None:
        return torch.cat([latents, plucker], dim=2)
    mask = torch.ones_like(plucker[:, :, :MASK_CHANNELS])
    views = torch.cat([latents, plucker, mask], dim=2)
    condition = torch.cat([condition_latents[:, None], plucker[:, :1], torch.zeros_like(mask[:, :1])], dim=2)
    return torch.cat([condition, views], dim=1)


def check_condition(condition_latents: Tensor | None, views: int) -> None:
    """ValueError unless condition latents are given exactly where a network has a condition view."""
    if (condition_latents is not None) != bool(views):
        kind = "an image" if views else "a text"
        raise ValueError(f"condition_latents: {'missing' if views else 'given'}, but this is {kind} model")


def stack_views(views: Tensor) -> Tensor:
    """[R, W, C, h, w] -> one tall image per row [R, C, W * h, w]."""
    return views.transpose(1, 2).flatten(2, 3)


def split_views(images: Tensor, num_views: int) -> Tensor:
    """Inverse of `stack_views`."""
    return images.unflatten(2, (num_views, -1)).transpose(1, 2)


def stock_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the stock network for the `config.json` of an official DiffSplat denoiser.

    The names of UNet blocks carry an "MV" there; extra keys describe the input channels, counted by `in_channels`.
    """

    def stock(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [stock(entry) for entry in value]
        return value.replace("MV2D", "2D") if isinstance(value, str) else value

    kept = {name: value for name, value in official.items() if not name.startswith(("_", "view_", "input_"))}
    return {
        name: stock(value) if name.endswith(("block_type", "block_types")) else value for name, value in kept.items()
    }
