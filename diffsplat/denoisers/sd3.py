"""Multi-view SD3 / SD3.5 on the STOCK diffusers transformer, and the denoiser cut into three exported graphs.

The views of an object lie below each other as one tall image [R, C, V * h, w]: the stock joint attention (and the
second, image-only one of SD3.5's dual blocks) then sees the tokens of all views, and the text once per object. Only the
patch embedding has to know of views, since every view has the same position grid.

Axes: R rows (request, guidance branch), V generated views, V' network views (V, and the condition view of an image
model in front), N tokens of a view, L text tokens, J width of a text embedding, D width of the network, T steps,
M modulation numbers of one step.

    once per request   embeddings -> SD3Context -> context [R, L, D]
                       pooled, timesteps [T] -> SD3Modulations -> modulations [R, T, M]
    once per step      latents, plucker, modulations of the step [R, M], context (, condition latents)
                           -> SD3Step -> prediction [R, V, C, h, w]
"""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from diffsplat.denoisers.graph_inputs import CONTEXT, MODULATIONS, STEP
from diffsplat.denoisers.view_inputs import check_condition, condition_views, network_input, split_views, stack_views


class MultiviewPatchEmbed(nn.Module):
    """`PatchEmbed` of a tall image: every view gets the same centre crop of the position table.

    The table comes from the checkpoint. It was made for a sample size of 128, not the 32 in the config, so
    recomputing it would give other numbers. Weights and names are those of the module that this one replaces.
    """

    pos_embed: Tensor  # [1, grid * grid, D]

    def __init__(self, stock: PatchEmbed, num_views: int) -> None:
        super().__init__()
        # what forward leaves out because SD3 does not have it
        assert stock.flatten and not stock.layer_norm and stock.pos_embed_max_size and stock.pos_embed is not None
        self.proj = stock.proj
        self.register_buffer("pos_embed", stock.pos_embed)
        self.patch_size: int = stock.patch_size
        self.grid_size: int = stock.pos_embed_max_size
        self.num_views = num_views

    def positions(self, rows: int, columns: int) -> Tensor:
        """The centre of the table, [rows * columns, D]."""
        if max(rows, columns) > self.grid_size:
            raise ValueError(f"latents of {rows} x {columns} patches: the position table has {self.grid_size} a side")
        top, left = (self.grid_size - rows) // 2, (self.grid_size - columns) // 2
        grid = self.pos_embed.reshape(self.grid_size, self.grid_size, -1)
        return grid[top : top + rows, left : left + columns].flatten(0, 1)

    def forward(self, tall: Tensor) -> Tensor:
        """[R, C, V' * h, w] -> tokens [R, V' * N, D], view slowest."""
        # numbers even while a graph is traced: the size of a view is fixed there, so that the crop is all it keeps of
        # the table (0.9 GB in SD3.5)
        height, width = (int(size) for size in tall.shape[-2:])
        rows, remainder = divmod(height, self.num_views * self.patch_size)
        assert remainder == 0, f"{height} rows are not {self.num_views} views of whole patches"
        tokens = self.proj(tall).flatten(2).transpose(1, 2)
        positions = self.positions(rows, width // self.patch_size).repeat(self.num_views, 1)
        return (tokens + positions).to(tokens.dtype)


def build_network(config: Mapping[str, Any], num_views: int) -> SD3Transformer2DModel:
    """The stock transformer with multi-view patches, random weights; official state-dict names.

    Args:
        config: constructor arguments of the stock class; in_channels tells text (C + 6) from image models (C + 7).
        num_views: views that are generated; an image model has one more inside.
    """
    transformer = SD3Transformer2DModel(**config)
    set_multiview_patches(transformer, num_views)
    return transformer


def sd3_condition_views(transformer: SD3Transformer2DModel) -> int:
    """Of a stock transformer: see `view_inputs.condition_views`."""
    return condition_views(transformer.config["in_channels"], transformer.config["out_channels"])


def set_multiview_patches(transformer: SD3Transformer2DModel, num_views: int) -> None:
    """Let the transformer take the views of an object as one tall image; no weight is added or renamed.

    Args:
        transformer: a stock one.
        num_views: views that are generated; an image model has one more inside.
    """
    patches: Any = MultiviewPatchEmbed(transformer.pos_embed, num_views + sd3_condition_views(transformer))
    transformer.pos_embed = patches


def _modulated_norms(transformer: SD3Transformer2DModel) -> list[Any]:
    """All AdaLN layers, in the order of their slices of M."""
    kinds = (AdaLayerNormZero, SD35AdaLayerNormZeroX, AdaLayerNormContinuous)
    return [module for module in transformer.modules() if isinstance(module, kinds)]


class SD3Context(nn.Module):
    """The text tokens as the first block gets them. Its layer is the transformer's own."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.context_embedder = transformer.context_embedder

    def forward(self, embeddings: Tensor) -> Tensor:
        """Text embeddings [R, L, J] -> context tokens [R, L, D]."""
        return self.context_embedder(embeddings)


class SD3Modulations(nn.Module):
    """Time and pooled-text embedding, and shifts, scales and gates of all AdaLN layers at every step of a schedule.

    A third of SD3.5's weights (767 of 2,243 million) makes modulations, and reads nothing but time and pooled text. A
    layer runs as one product over all rows and all steps of the schedule, so that its weights are read once per request
    and not once per step. The layers are the transformer's own: gradients reach them, and no weight is held twice.
    (Packing the 49 layers into a single matrix would copy 767 million numbers at every request, or hold them twice.)
    """

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.time_text_embed = transformer.time_text_embed
        self.layers = nn.ModuleList(norm.linear for norm in _modulated_norms(transformer))

    def forward(self, pooled: Tensor, timesteps: Tensor) -> Tensor:
        """Modulations of R rows that share a schedule, or have one each.

        Args:
            pooled: [R, P] pooled text embeddings.
            timesteps: [T] or [R, T] float32 in [0, 1000].

        Returns:
            [R, T, M].
        """
        embed = self.time_text_embed
        frequencies = embed.time_proj(timesteps.reshape(-1)).to(pooled.dtype)
        times = embed.timestep_embedder(frequencies).reshape(*timesteps.shape, -1)  # [T, D] or [R, T, D]
        conditioning = F.silu(times + embed.text_embedder(pooled)[:, None])  # [R, T, D]
        return torch.cat([layer(conditioning) for layer in self.layers], dim=-1)


class _Slice(nn.Module):
    """Replaces an AdaLN layer's `linear`: selects its columns of the modulations computed before."""

    def __init__(self, offset: int, width: int) -> None:
        super().__init__()
        self.offset = offset
        self.width = width

    def forward(self, modulations: Tensor) -> Tensor:
        """[R, M] -> [R, width]."""
        return modulations[:, self.offset : self.offset + self.width]


class _PassModulations(nn.Module):
    """Replaces `time_text_embed`: passes the modulations to the blocks as their conditioning."""

    def forward(self, timestep: None, modulations: Tensor) -> Tensor:
        """[R, M] -> [R, M]."""
        assert timestep is None
        return modulations


def _without_request_work(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The same transformer, on the same parameters, without the layers that run once per request."""
    tensors = chain(transformer.parameters(), transformer.buffers())  # "copied" already, so that the copy shares them
    step: Any = copy.deepcopy(transformer, memo={id(tensor): tensor for tensor in tensors})
    step.time_text_embed = _PassModulations()
    step.context_embedder = nn.Identity()
    offset = 0
    for norm in _modulated_norms(step):
        width = norm.linear.out_features
        norm.silu, norm.linear = nn.Identity(), _Slice(offset, width)
        offset += width
    return step


class SD3Step(nn.Module):
    """One evaluation of a multi-view SD3 for R rows that may be at different steps of different schedules.

    Shares its parameters with the transformer, without the layers that run once per request.
    """

    def __init__(self, transformer: SD3Transformer2DModel, num_views: int) -> None:
        super().__init__()
        patches = transformer.pos_embed
        self.condition_views = sd3_condition_views(transformer)
        installed = patches.num_views - self.condition_views if isinstance(patches, MultiviewPatchEmbed) else "single"
        if installed != num_views:
            raise ValueError(f"num_views = {num_views}: the transformer's patches are set for {installed} views")
        self.transformer = _without_request_work(transformer)
        self.num_views = num_views

    def forward(
        self,
        latents: Tensor,
        plucker: Tensor,
        modulations: Tensor,
        context: Tensor,
        condition_latents: Tensor | None = None,
    ) -> Tensor:
        """Prediction of the rows' generated views.

        Args:
            latents: [R, V, C, h, w], already multiplied by the sampler's c_in.
            plucker: [R, V, 6, h, w], rays of the views.
            modulations: [R, M], every row's step of those from `SD3Modulations`.
            context: [R, L, D] from `SD3Context`.
            condition_latents: [R, C, h, w], see `view_inputs.network_input`; for image models only.

        Returns:
            [R, V, C, h, w].
        """
        check_condition(condition_latents, self.condition_views)
        tall = stack_views(network_input(latents, plucker, condition_latents))  # [R, C', V' * h, w]
        prediction = self.transformer(tall, context, modulations, return_dict=False)[0]
        return split_views(prediction, self.num_views + self.condition_views)[:, self.condition_views :]


GRAPHS = {CONTEXT: SD3Context, MODULATIONS: SD3Modulations, STEP: SD3Step}
