"""Multi-view SD3 / SD3.5 on the STOCK diffusers transformer, and the denoiser cut into the two exported graphs.

The views of an object lie below each other as one tall image [R, C, V * h, w]: the stock joint attention (and the
second, image-only one of SD3.5's dual blocks) then sees the tokens of all views, and the text once per object. Only the
patch embedding has to know of views, since every view has the same position grid.

Axes: R rows (request, guidance branch), V generated views, V' network views (V, and the condition view of an image
model in front), N tokens of a view, L text tokens, J width of a text embedding, D width of the network, T steps,
M modulation numbers of one step.

    once per request   embeddings, pooled, timesteps [T] -> SD3Context -> context [R, L, D], modulations [R, T, M]
    once per step      latents, plucker, modulations of the step [R, M], context (, condition)
                           -> SD3Step -> prediction [R, V, C, h, w]
"""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

PLUCKER_CHANNELS = 6
MASK_CHANNELS = 1  # of image models: 0 on the condition view, 1 on the generated ones


class MultiviewPatchEmbed(nn.Module):
    """`PatchEmbed` of a tall image: every view gets the same centre crop of the position table.

    The table is the checkpoint's own. It was made for another sample size than the config tells (128, not 32), so that
    making it anew would give other numbers. Weights and names are those of the module it takes the place of.
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


def build_sd3(config: Mapping[str, Any], num_views: int) -> SD3Transformer2DModel:
    """The stock transformer with multi-view patches, random weights; official state-dict names.

    Args:
        config: constructor arguments of the stock class; in_channels tells text (C + 6) from image models (C + 7).
        num_views: views that are generated; an image model has one more inside.
    """
    transformer = SD3Transformer2DModel(**config)
    set_multiview_patches(transformer, num_views)
    return transformer


def stock_sd3_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the stock transformer for the `config.json` of an official DiffSplat denoiser.

    Three extra keys describe the input channels, which `in_channels` has counted already.
    """
    return {name: value for name, value in official.items() if not name.startswith(("_", "view_", "input_"))}


def is_image_conditioned(transformer: SD3Transformer2DModel) -> bool:
    """Whether the network takes a condition view and the mask channel; ValueError for other numbers of channels."""
    inputs, latents = transformer.config["in_channels"], transformer.config["out_channels"]
    extra = inputs - latents - PLUCKER_CHANNELS
    if extra not in (0, MASK_CHANNELS):
        allowed = latents + PLUCKER_CHANNELS
        raise ValueError(f"in_channels = {inputs}: must be {allowed} (text) or {allowed + MASK_CHANNELS} (image)")
    return extra == MASK_CHANNELS


def set_multiview_patches(transformer: SD3Transformer2DModel, num_views: int) -> None:
    """Let the transformer take the views of an object as one tall image; no weight is added or renamed.

    Args:
        transformer: a stock one.
        num_views: views that are generated; an image model has one more inside.
    """
    patches: Any = MultiviewPatchEmbed(transformer.pos_embed, num_views + is_image_conditioned(transformer))
    transformer.pos_embed = patches


def stack_views(views: Tensor) -> Tensor:
    """[R, V, C, h, w] -> tall image [R, C, V * h, w]."""
    return views.transpose(1, 2).flatten(2, 3)


def split_views(tall: Tensor, num_views: int) -> Tensor:
    """Inverse of `stack_views`."""
    return tall.unflatten(2, (num_views, -1)).transpose(1, 2)


def network_input(latents: Tensor, plucker: Tensor, condition: Tensor | None = None) -> Tensor:
    """What the network sees of every view.

    Args:
        latents: [R, V, C, h, w] of the generated views.
        plucker: [R, V, 6, h, w] rays of the generated views; the condition view has those of view 0.
        condition: [R, C, h, w] latents of the condition view, free of noise and zero where the image is to be ignored
            (unconditional branch); None for a text model.

    Returns:
        [R, V', C + 6 (+ 1), h, w]: the condition view first; latents, rays, mask along channels.
    """
    if condition is None:
        return torch.cat([latents, plucker], dim=2)
    mask = torch.ones_like(plucker[:, :, :MASK_CHANNELS])
    views = torch.cat([latents, plucker, mask], dim=2)
    condition_view = torch.cat([condition[:, None], plucker[:, :1], torch.zeros_like(mask[:, :1])], dim=2)
    return torch.cat([condition_view, views], dim=1)


def _modulated_norms(transformer: SD3Transformer2DModel) -> list[Any]:
    """All AdaLN layers, in the order of their slices of M."""
    kinds = (AdaLayerNormZero, SD35AdaLayerNormZeroX, AdaLayerNormContinuous)
    return [module for module in transformer.modules() if isinstance(module, kinds)]


class SD3RequestContext(NamedTuple):
    """What does not depend on the latents."""

    context: Tensor  # [R, L, D] text tokens as the first block gets them
    modulations: Tensor  # [R, T, M] shifts, scales and gates of all AdaLN layers at every step


class SD3Context(nn.Module):
    """All that a request computes once: text projection, time and pooled-text embedding, AdaLN modulations.

    A third of SD3.5's weights (767 of 2,243 million) makes modulations, and reads nothing but time and pooled text. A
    layer runs as one product over all rows and all steps of the schedule, so that its weights are read once per request
    and not once per step. The layers are the transformer's own: gradients reach them, and no weight is held twice.
    (Packing the 49 layers into a single matrix would copy 767 million numbers at every request, or hold them twice.)
    """

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.context_embedder = transformer.context_embedder
        self.time_text_embed = transformer.time_text_embed
        self.layers = nn.ModuleList(norm.linear for norm in _modulated_norms(transformer))

    def forward(self, embeddings: Tensor, pooled: Tensor, timesteps: Tensor) -> SD3RequestContext:
        """Context of R rows that share a schedule, or have one each.

        Args:
            embeddings: [R, L, J] text embeddings.
            pooled: [R, P] pooled text embeddings.
            timesteps: [T] or [R, T] float32 in [0, 1000].

        Returns:
            Context tokens [R, L, D] and modulations [R, T, M].
        """
        embed = self.time_text_embed
        frequencies = embed.time_proj(timesteps.reshape(-1)).to(pooled.dtype)
        times = embed.timestep_embedder(frequencies).reshape(*timesteps.shape, -1)  # [T, D] or [R, T, D]
        conditioning = F.silu(times + embed.text_embedder(pooled)[:, None])  # [R, T, D]
        modulations = torch.cat([layer(conditioning) for layer in self.layers], dim=-1)
        return SD3RequestContext(self.context_embedder(embeddings), modulations)


class _Slice(nn.Module):
    """Takes the place of an AdaLN layer's `linear`: its columns of the modulations computed before."""

    def __init__(self, offset: int, width: int) -> None:
        super().__init__()
        self.offset = offset
        self.width = width

    def forward(self, modulations: Tensor) -> Tensor:
        """[R, M] -> [R, width]."""
        return modulations[:, self.offset : self.offset + self.width]


class _PassModulations(nn.Module):
    """Takes the place of `time_text_embed`: what the blocks get as their conditioning are the modulations."""

    def forward(self, timestep: None, modulations: Tensor) -> Tensor:
        """[R, M] -> [R, M]."""
        assert timestep is None
        return modulations


def _without_request_work(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The same transformer, on the same parameters, without the layers that `SD3Context` runs."""
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

    Shares its parameters with the transformer it is made of, and holds none that `SD3Context` runs.
    """

    def __init__(self, transformer: SD3Transformer2DModel, num_views: int) -> None:
        super().__init__()
        patches = transformer.pos_embed
        condition_views = int(is_image_conditioned(transformer))
        installed = patches.num_views - condition_views if isinstance(patches, MultiviewPatchEmbed) else "single"
        if installed != num_views:
            raise ValueError(f"num_views = {num_views}: the transformer's patches are set for {installed} views")
        self.transformer = _without_request_work(transformer)
        self.num_views = num_views
        self.condition_views = condition_views

    def forward(
        self, latents: Tensor, plucker: Tensor, modulations: Tensor, context: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Prediction of the rows' generated views.

        Args:
            latents: [R, V, C, h, w], already multiplied by the sampler's c_in.
            plucker: [R, V, 6, h, w], rays of the views.
            modulations: [R, M], every row's step of the modulations from `SD3Context`.
            context: [R, L, D] from `SD3Context`.
            condition: [R, C, h, w], see `network_input`; an image model needs it, a text model refuses it.

        Returns:
            [R, V, C, h, w].
        """
        if (condition is not None) != bool(self.condition_views):
            kind = "an image" if self.condition_views else "a text"
            raise ValueError(f"condition is {'missing' if condition is None else 'given'}: this is {kind} model")
        tall = stack_views(network_input(latents, plucker, condition))  # [R, C', V' * h, w]
        prediction = self.transformer(tall, context, modulations, return_dict=False)[0]
        return split_views(prediction, self.num_views + self.condition_views)[:, self.condition_views :]
