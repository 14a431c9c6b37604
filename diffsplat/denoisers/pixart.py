"""PixArt-alpha and PixArt-Sigma on the STOCK diffusers transformer: many views at once, and cut into two graphs.

The views of an object are stacked into one tall image. A patch never crosses from view to view, every view gets the
same position table, and then the stock self-attention is attention over all views, while text and time are given once
per object.

Axes: R rows (request, guidance branch), V generated views, W views that attend to each other (V, or V + 1 with a
condition view in front), N tokens of a view, d width of the transformer, L text tokens, P width of the packed text.

    text embeddings [R, L, D] -> PixArtTextContext (pixart_text) -> context [R, L, P]          once per request
    latents, plucker, timesteps, context, kept -> PixArtStep -> prediction [R, V, C, h, w]     once per step
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn

from diffsplat.denoisers.graph_inputs import CONTEXT, STEP
from diffsplat.denoisers.pixart_text import PixArtTextContext, take_packed_text
from diffsplat.denoisers.view_inputs import check_condition, condition_views, network_input, split_views, stack_views


def build_network(config: Mapping[str, Any], num_views: int) -> PixArtTransformer2DModel:
    """The stock transformer with multi-view attention, random weights; official state-dict names.

    Args:
        config: constructor arguments of the stock class; `in_channels` tells text (C + 6) from image models (C + 7).
        num_views: V, views that are generated; an image model has one more inside.
    """
    transformer = PixArtTransformer2DModel(**config)
    set_tall_views(transformer, num_views + pixart_condition_views(transformer))
    return transformer


def pixart_condition_views(transformer: PixArtTransformer2DModel) -> int:
    """Of a stock transformer: see `view_inputs.condition_views`."""
    return condition_views(int(transformer.config["in_channels"]), _latent_channels(transformer))


def _latent_channels(transformer: PixArtTransformer2DModel) -> int:
    return int(transformer.out_channels) // 2  # the other half is the learned variance


def set_tall_views(transformer: PixArtTransformer2DModel, attended_views: int) -> None:
    """Let a transformer take W views as one tall image, and text that `PixArtTextContext` has packed.

    No weight is added, copied or renamed. The transformer is then called with images [R, C, W * h, w], timesteps [R],
    packed text [R, L, P] and, where texts of different lengths are batched, their mask [R, L].

    Args:
        transformer: a stock one.
        attended_views: W, all views of an object, a condition view among them.
    """
    patches: Any = transformer.pos_embed
    if not isinstance(patches, PatchEmbed):
        raise ValueError(f"pos_embed is a {type(patches).__name__}: must be that of a stock transformer, changed once")
    take_packed_text(transformer)
    tall: Any = TallPatchEmbed(patches, attended_views)
    transformer.pos_embed = tall
    transformer.proj_out.register_forward_hook(_with_unit_axis)


def _with_unit_axis(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """[R, W * N, ...] -> [R, 1, W * N, ...], for the `squeeze(1)` with which the stock forward goes on.

    It changes nothing in torch. A traced graph, in which W * N is not known to differ from 1, would get a branch there
    that ONNX Runtime refuses.
    """
    return output[:, None]


class TallPatchEmbed(nn.Module):
    """The stock patches and position table, for views stacked into one tall image; the same tensors and names.

    Checkpoints do not hold the table. It is what the stock module computes for `sample_size` (token coordinates 0 .. 15
    at 32), the size that is served; views of another size get a table of their own, as from the stock module.
    """

    pos_embed: Tensor

    def __init__(self, stock: PatchEmbed, attended_views: int) -> None:
        super().__init__()
        assert stock.flatten and not stock.layer_norm and stock.pos_embed_max_size is None
        self.attended_views = attended_views
        self.proj = stock.proj
        self.patch_size: int = stock.patch_size
        self.base_size: int = stock.base_size
        self.interpolation_scale = stock.interpolation_scale
        self.register_buffer("pos_embed", stock.pos_embed, persistent=False)  # [1, N, d]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Table of a view of rows x columns tokens, [1, rows * columns, d]."""
        if rows == columns == self.base_size:
            return self.pos_embed
        table = get_2d_sincos_pos_embed(
            self.pos_embed.shape[-1],
            (rows, columns),
            base_size=self.base_size,
            interpolation_scale=self.interpolation_scale,
            device=self.pos_embed.device,
            output_type="pt",
        )
        return table.to(torch.float32)[None]

    def forward(self, images: Tensor) -> Tensor:
        """[R, C, W * h, w] -> [R, W * N, d], view slowest."""
        # numbers even while a graph is traced: the size of a view is fixed there
        height, width = (int(size) for size in images.shape[-2:])
        rows, remainder = divmod(height, self.attended_views * self.patch_size)
        assert remainder == 0, f"{height} rows are not {self.attended_views} views of whole patches"
        tokens = self.proj(images).flatten(2).transpose(1, 2)
        positions = self.positions(rows, width // self.patch_size).repeat(1, self.attended_views, 1)
        return (tokens + positions).to(tokens.dtype)


class PixArtStep(nn.Module):
    """One evaluation of a multi-view PixArt transformer for R rows that may be at different timesteps."""

    def __init__(self, transformer: PixArtTransformer2DModel, num_views: int) -> None:
        """`num_views` counts the generated views; the attention of an image model spans one view more."""
        super().__init__()
        self.num_views = num_views
        self.condition_views = pixart_condition_views(transformer)
        self.attended_views = num_views + self.condition_views
        installed = getattr(transformer.pos_embed, "attended_views", None)
        if installed != self.attended_views:
            raise ValueError(
                f"num_views = {num_views}: the transformer must be set for {self.attended_views} views in all, "
                f"it is for {installed or 'single ones'}"
            )
        self.transformer = transformer
        self.latent_channels = _latent_channels(transformer)
        self.extra_inputs: tuple[str, ...] = ("kept",)  # what `forward` takes after the context, in order
        if self.condition_views:
            self.extra_inputs += ("condition_latents",)

    def forward(
        self,
        latents: Tensor,
        plucker: Tensor,
        timesteps: Tensor,
        context: Tensor,
        kept: Tensor | None = None,
        condition_latents: Tensor | None = None,
    ) -> Tensor:
        """Prediction of the rows' generated views, without the learned variance.

        Args:
            latents: [R, V, C, h, w], already multiplied by the sampler's c_in.
            plucker: [R, V, 6, h, w], rays of the views.
            timesteps: [R] float32.
            context: [R, L, P] from `PixArtTextContext`.
            kept: [R, L], 1 or True where a token counts; None where all do.
            condition_latents: [R, C, h, w] of the condition image, see `view_inputs.network_input`;
                required if and only if the network has a condition view.

        Returns:
            [R, V, C, h, w].

        Raises:
            ValueError: `condition_latents` is missing, or given to a text model.
        """
        check_condition(condition_latents, self.condition_views)
        prediction = self.transformer(
            stack_views(network_input(latents, plucker, condition_latents)),
            encoder_hidden_states=context,
            timestep=timesteps,
            encoder_attention_mask=kept,
            return_dict=False,
        )[0]
        return split_views(prediction, self.attended_views)[:, -self.num_views :, : self.latent_channels]


GRAPHS = {CONTEXT: PixArtTextContext, STEP: PixArtStep}
