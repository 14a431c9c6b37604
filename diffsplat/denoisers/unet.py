"""Multi-view attention on a STOCK diffusers UNet, and the denoiser cut into the graphs that are exported.

Axes: B objects, R rows (request, guidance branch), V views of an object, N tokens of a view, L text tokens, D width of
a text embedding, P width of the packed text context, E width of a time embedding. Views are always the fastest index of
a network's batch.

    text embeddings [R, L, D] -> TextContext -> context [R, L, P]                                  once per request
    pooled text [R, D'], sizes [R, 6] -> AddedEmbedding -> added [R, E]               SDXL only, once per request
    latents, plucker, timesteps, context (, condition latents) (, added)
        -> DenoiserStep -> prediction [R, V, C, h, w]                                              once per step
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from diffsplat.denoisers.graph_inputs import ADDED, CONTEXT, STEP
from diffsplat.denoisers.shared_weights import AddedEmbedding, per_view, share_weights_for_step, takes_added_embedding
from diffsplat.denoisers.view_inputs import condition_views, network_input

# attention processors get this keyword through the UNet's `cross_attention_kwargs`
TEXT_IS_PACKED = "text_is_packed"


class JointViewAttention:
    """Self-attention of a token with every token of every view of its object."""

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B * V, N, C], view fastest
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        text_is_packed: bool = False,
    ) -> Tensor:
        """Returns [B * V, N, C]."""
        assert encoder_hidden_states is None and attention_mask is None
        tokens, channels = hidden_states.shape[1:]
        joint = hidden_states.reshape(-1, self.num_views * tokens, channels)  # [B, V * N, C]
        out = _attend(attn, attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
        return out.reshape(-1, tokens, channels)


class TextAttention:
    """Cross-attention to the text, given as embeddings or as keys and values computed before by `TextContext`.

    Embeddings may come once per view (as the reference feeds them) or once per object; packed ones come once per
    object. All views of an object read the same text, so that their queries can be laid end to end: the same numbers,
    and neither embeddings nor keys and values are ever repeated.
    """

    def __init__(self, num_views: int, offset: int, width: int) -> None:
        self.num_views = num_views
        self.offset = offset  # where this layer's keys start in the packed channels; its values follow
        self.width = width  # channels of the keys, and of the values

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B * V, N, C], view fastest
        encoder_hidden_states: Tensor | None = None,  # [B or B * V, L, D], or packed [B, L, P]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        text_is_packed: bool = False,
    ) -> Tensor:
        """Returns [B * V, N, C]."""
        assert encoder_hidden_states is not None and attention_mask is None
        tokens, channels = hidden_states.shape[1:]
        if text_is_packed:
            key = encoder_hidden_states[..., self.offset : self.offset + self.width]
            value = encoder_hidden_states[..., self.offset + self.width : self.offset + 2 * self.width]
            once_per_object = True
        else:
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            once_per_object = encoder_hidden_states.shape[0] != hidden_states.shape[0]
        query = attn.to_q(hidden_states)
        if once_per_object:
            query = query.reshape(-1, self.num_views * tokens, self.width)  # [B, V * N, width]
        return _attend(attn, query, key, value).reshape(-1, tokens, channels)


def _attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of [B, N, C] to [B, L, C], with the layer's output projection."""
    heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)]
    out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](out))


def set_multiview_attention(network: Any, num_views: int) -> None:
    """Let every self-attention inside a transformer block see all `num_views` views; no weight is added or renamed.

    The batch is then (object, view) with the view fastest, and `encoder_hidden_states` come once per view [B * V, L, D]
    or once per object [B, L, D].

    Args:
        network: a stock UNet2DConditionModel or ControlNetModel.
        num_views: all views of an object, a condition view among them.
    """
    processors = dict(network.attn_processors)
    offset = 0
    for name, module in network.named_modules():
        if not name.endswith((".attn1", ".attn2")):
            continue
        assert isinstance(module, Attention), name
        # what the processors leave out because the stock UNets do not have it
        assert module.group_norm is None and module.spatial_norm is None and module.norm_q is None, name
        assert not module.residual_connection and module.rescale_output_factor == 1 and not module.norm_cross, name
        if name.endswith(".attn1"):
            processors[f"{name}.processor"] = JointViewAttention(num_views)
        else:
            width = module.to_k.out_features
            processors[f"{name}.processor"] = TextAttention(num_views, offset, width)
            offset += 2 * width
    network.set_attn_processor(processors)


def check_multiview_attention(network: Any, num_views: int, condition_views: int = 0) -> None:
    """ValueError unless `set_multiview_attention` was called for that number of generated and condition views."""
    installed = {p.num_views for p in network.attn_processors.values() if isinstance(p, JointViewAttention)}
    if installed != {num_views + condition_views}:
        wanted = f"num_views = {num_views}{' and a condition view' * condition_views}"
        raise ValueError(f"{wanted}: the network's attention is set for {installed or 'single'} views")


def unet_condition_views(unet: Any) -> int:
    """Of a stock UNet: see `view_inputs.condition_views`."""
    return condition_views(unet.config.in_channels, unet.config.out_channels)


def build_network(config: Mapping[str, Any], num_views: int) -> UNet2DConditionModel:
    """The stock UNet with multi-view attention, random weights; official state-dict names.

    Args:
        config: constructor arguments of the stock class; `in_channels` tells text (C + 6) from image models (C + 7).
        num_views: V, views that are generated; an image model has one more inside.
    """
    unet = UNet2DConditionModel(**config)
    set_multiview_attention(unet, num_views + unet_condition_views(unet))
    return unet


class TextContext(nn.Module):
    """All text keys and values of a multi-view UNet or ControlNet, which do not depend on the step or on the view.

    It uses the network's own layers, so gradients reach them.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        projections: list[nn.Module] = []
        for name, module in network.named_modules():
            if name.endswith(".attn2"):
                projections += [module.to_k, module.to_v]
        self.layers = nn.ModuleList(projections)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        """[R, L, D] -> [R, L, P]: (keys, values) of one layer after the other, as `named_modules()` lists them."""
        return torch.cat([layer(text_embeddings) for layer in self.layers], dim=-1)


class DenoiserStep(nn.Module):
    """One evaluation of a multi-view UNet for R rows that may be at different timesteps."""

    def __init__(self, unet: UNet2DConditionModel, num_views: int) -> None:
        """`num_views` counts the generated views; the attention of an image model spans one view more."""
        super().__init__()
        self.condition_views = unet_condition_views(unet)
        check_multiview_attention(unet, num_views, self.condition_views)
        self.unet = share_weights_for_step(unet)
        self.num_views = num_views
        self.extra_inputs: tuple[str, ...] = ()  # what `forward` takes after the context, in order
        if self.condition_views:
            self.extra_inputs += ("condition_latents",)
        if takes_added_embedding(unet):
            self.extra_inputs += ("added",)

    def forward(self, latents: Tensor, plucker: Tensor, timesteps: Tensor, context: Tensor, *extra: Tensor) -> Tensor:
        """Prediction of the rows' views.

        Args:
            latents: [R, V, C, h, w], already multiplied by the sampler's c_in.
            plucker: [R, V, 6, h, w], rays of the views.
            timesteps: [R] float32.
            context: [R, L, P] from `TextContext`.
            *extra: as listed in `extra_inputs`:
                condition_latents: [R, C, h, w], see `view_inputs.network_input`.
                added: [R, E] from `AddedEmbedding`.

        Returns:
            [R, V, C_out, h, w].
        """
        return self.predict(latents, plucker, timesteps, context, *extra)

    def predict(
        self, latents: Tensor, plucker: Tensor, timesteps: Tensor, context: Tensor, *extra: Tensor, **stock: Any
    ) -> Tensor:
        """`forward` with further keywords of the stock UNet's own."""
        assert len(extra) == len(self.extra_inputs), f"{len(extra)} inputs for {self.extra_inputs}"
        given = dict(zip(self.extra_inputs, extra, strict=True))
        sample = network_input(latents, plucker, given.get("condition_latents"))  # [R, W, C + 6 (+ 1), h, w]
        views = self.num_views + self.condition_views
        if "added" in given:
            stock["timestep_cond"] = per_view(given["added"], views)
        prediction = self.unet(
            sample.flatten(0, 1),
            timesteps[:, None].expand(-1, views).reshape(-1),
            encoder_hidden_states=context,
            cross_attention_kwargs={TEXT_IS_PACKED: True},
            return_dict=False,
            **stock,
        )[0]
        prediction = prediction.unflatten(0, (-1, views))
        return prediction[:, 1:] if self.condition_views else prediction


def expand_input_channels(
    state: Mapping[str, Tensor], in_channels: int, name: str = "conv_in.weight"
) -> dict[str, Tensor]:
    """State dict of a base checkpoint widened to more input channels; the new ones start at zero.

    Args:
        state: state dict of the base network.
        in_channels: latent + 6 Pluecker (+ 1 mask) channels.
        name: the tensor of the first layer, [out, in, k, k]; its bias stays.
    """
    weight = state[name]
    missing = in_channels - weight.shape[1]
    if missing < 0:
        raise ValueError(f"in_channels = {in_channels}: {name} has {weight.shape[1]} already")
    return {**state, name: torch.cat([weight, weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])], dim=1)}


GRAPHS = {CONTEXT: TextContext, ADDED: AddedEmbedding, STEP: DenoiserStep}
