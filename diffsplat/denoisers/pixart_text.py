"""The text of PixArt transformers, computed once per request: caption projection, keys and values of all layers.

Axes: R rows (request, guidance branch), L text tokens, D width of a text embedding, d width of the transformer, W * N
tokens of all views of an object, P = 2 * layers * d width of the packed text context.

    embeddings [R, L, D] of the tokens that count -> PixArtTextContext -> context [R, L, P]
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn


def take_packed_text(transformer: PixArtTransformer2DModel) -> None:
    """Let a transformer read packed text [R, L, P] instead of embeddings; no weight is added, copied or renamed."""
    caption: Any = transformer.caption_projection
    if not isinstance(caption, PixArtAlphaTextProjection):
        raise ValueError(
            f"caption_projection is a {type(caption).__name__}: must be that of a stock transformer with "
            "caption_channels, changed once"
        )
    once: Any = CaptionOncePerRequest(caption)
    transformer.caption_projection = once
    layers = _text_layers(transformer)
    processors = dict(transformer.attn_processors)
    for index, (name, layer) in enumerate(layers.items()):
        # what the processor leaves out because the stock transformer does not have it
        assert layer.group_norm is None and layer.spatial_norm is None and layer.norm_q is None, name
        assert not layer.residual_connection and layer.rescale_output_factor == 1 and not layer.norm_cross, name
        processors[f"{name}.processor"] = PackedTextAttention(index, len(layers))
    transformer.set_attn_processor(processors)


def _text_layers(transformer: PixArtTransformer2DModel) -> dict[str, Attention]:
    return {name: module for name, module in transformer.named_modules() if name.endswith(".attn2")}


class CaptionOncePerRequest(nn.Module):
    """The stock caption projection, under its names, moved out of the step: there it lets packed text pass."""

    def __init__(self, stock: PixArtAlphaTextProjection) -> None:
        super().__init__()
        self.linear_1, self.act_1, self.linear_2 = stock.linear_1, stock.act_1, stock.linear_2

    def project(self, text_embeddings: Tensor) -> Tensor:
        """[R, L, D] -> [R, L, d], what the stock module's `forward` does."""
        return self.linear_2(self.act_1(self.linear_1(text_embeddings)))

    def forward(self, packed: Tensor) -> Tensor:
        """What the transformer calls at every step: [R, L, P] as it is. The transformer views it [R, L * P / d, d]."""
        return packed.contiguous()


class PackedTextAttention:
    """Cross-attention to keys and values that `PixArtTextContext` computed.

    The transformer hands the packed text on as [R, L * 2 * layers, d]: for every token the key and the value of the
    first layer, then of the second and so on.
    """

    def __init__(self, layer: int, layers: int) -> None:
        self.layer = layer
        self.layers = layers

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [R, W * N, d]
        encoder_hidden_states: Tensor | None = None,  # [R, L * 2 * layers, d]
        attention_mask: Tensor | None = None,  # [R, 1, L], added to the logits: 0 keeps a token, -10000 drops it
        temb: Tensor | None = None,
    ) -> Tensor:
        """Returns [R, W * N, d]."""
        assert encoder_hidden_states is not None
        key = encoder_hidden_states[:, 2 * self.layer :: 2 * self.layers]
        value = encoder_hidden_states[:, 2 * self.layer + 1 :: 2 * self.layers]
        heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), key, value)]
        mask = None if attention_mask is None else attention_mask[:, None]  # [R, 1, 1, L]
        out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], mask).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


class PixArtTextContext(nn.Module):
    """Caption projection and all text keys and values, which do not depend on the step or on the view.

    Its layers are the transformer's own, so that gradients reach them.
    """

    def __init__(self, transformer: PixArtTransformer2DModel) -> None:
        super().__init__()
        caption: Any = transformer.caption_projection
        assert isinstance(caption, CaptionOncePerRequest), "take_packed_text comes first"
        self.caption = caption
        projections: list[nn.Module] = []
        for layer in _text_layers(transformer).values():
            projections += [layer.to_k, layer.to_v]
        self.layers = nn.ModuleList(projections)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        """[R, L, D] -> [R, L, P]: (key, value) of one layer after the other."""
        caption = self.caption.project(text_embeddings)
        return torch.cat([layer(caption) for layer in self.layers], dim=-1)
