"""A stock UNet or ControlNet for a denoising step, without the layers whose outputs are the same for all steps.

Axes: R rows (request, guidance branch), V views, D' width of the pooled text, E width of a time embedding.
"""

import copy
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn


def takes_added_embedding(network: Any) -> bool:
    """Whether the network has SDXL's added embedding; ValueError for any other kind."""
    kind = network.config.addition_embed_type
    if kind not in (None, "text_time"):
        raise ValueError(f"addition_embed_type = {kind!r}: must be null or 'text_time'")
    return kind is not None


class AddedEmbedding(nn.Module):
    """What SDXL adds to the time embedding of every step: the same for all steps and views of a request.

    Its layers are those of the network (UNet or ControlNet), so that gradients reach them.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if not takes_added_embedding(network):
            raise ValueError("addition_embed_type is null: the network takes no pooled text and no sizes")
        self.add_time_proj = network.add_time_proj
        self.add_embedding = network.add_embedding

    def forward(self, pooled: Tensor, sizes: Tensor) -> Tensor:
        """Pooled text [R, D'] and six size numbers [R, 6] -> [R, E]."""
        numbers = self.add_time_proj(sizes.flatten()).reshape(pooled.shape[0], -1)
        return self.add_embedding(torch.cat([pooled, numbers.to(pooled.dtype)], dim=-1))


class _TimeAndAdded(nn.Module):
    """SDXL's time embedding with the added one, which arrives through the stock keyword `timestep_cond`."""

    def __init__(self, time_embedding: nn.Module) -> None:
        super().__init__()
        self.time_embedding = time_embedding

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        return self.time_embedding(sample) + condition


def share_weights_for_step(network: Any, **replaced: nn.Module) -> Any:
    """A shallow copy of the network for the step graph, without the layers that run once per request.

    Parameters are shared and the original is unchanged. An SDXL copy takes the output of `AddedEmbedding` as
    `timestep_cond` instead of pooled text and sizes. `replaced` names further submodules to exchange. If there is
    nothing to change, returns the network itself.
    """
    modules = dict(network._modules)
    added = takes_added_embedding(network)
    if added:
        replaced = {**replaced, "time_embedding": _TimeAndAdded(network.time_embedding)}
        del modules["add_time_proj"], modules["add_embedding"]
    if not replaced:
        return network
    assert set(replaced) <= set(modules), set(replaced) - set(modules)
    view = copy.copy(network)  # shallow: parameters and submodules stay the same objects
    view._modules = {**modules, **replaced}
    if added:
        view._internal_dict = FrozenDict({**network.config, "addition_embed_type": None})
    return view


def per_view(rows: Tensor, num_views: int) -> Tensor:
    """[R, ...] -> [R * V, ...]: every row repeated for its views."""
    return rows[:, None].expand(-1, num_views, *[-1] * (rows.ndim - 1)).flatten(0, 1)
