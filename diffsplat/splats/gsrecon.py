"""GSRecon: four views of an object, with normals and coordinates, to a splat grid in one pass.

Axes: B objects, V views, H W pixels, L tokens of all views, D width.
State-dict names are those of the official checkpoints.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffsplat.backbones import BackboneSpec, PixelRule
from diffsplat.backbones.spec import PLUCKER_CHANNELS
from diffsplat.geometry.cameras import Cameras, plucker_rays

GSRECON = "gsrecon"  # its graph: images and rays -> grid
OPACITY_LOGIT_SHIFT = -2.0  # splats start faint: sigmoid(-2) = 0.12


@dataclass(frozen=True)
class GSReconConfig:
    """Architecture of one GSRecon."""

    input_size: int = 256
    patch_size: int = 8
    dim: int = 512
    num_blocks: int = 12
    num_heads: int = 8
    llama_style: bool = True  # RMS norms, q/k norm and gated MLP; otherwise LayerNorm and a GELU MLP
    # channels after RGB, in this order
    input_normal: bool = True
    input_coord: bool = True
    input_mr: bool = False  # metallic and roughness
    ray_pixel_rule: PixelRule = "legacy"

    @property
    def input_maps(self) -> dict[str, int]:
        """Name -> channels of the maps that make one input image, in their order."""
        maps = {
            "images": (True, 3),
            "normals": (self.input_normal, 3),
            "coords": (self.input_coord, 3),
            "metallic_roughness": (self.input_mr, 2),
        }
        return {name: channels for name, (taken, channels) in maps.items() if taken}

    @property
    def image_channels(self) -> int:
        """Channels of one input image: 3 of RGB, 3 of normal, 3 of coordinate, 2 of metallic and roughness."""
        return sum(self.input_maps.values())


def patchify(images: Tensor, rows: int, columns: int) -> Tensor:
    """[B, C, H, W] -> tokens [B, (H / rows) * (W / columns), rows * columns * C], channel fastest."""
    grid = images.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))  # [B, C, h, rows, w, columns]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, rows: int, columns: int, height: int) -> Tensor:
    """Inverse of `patchify` for images of `height` pixels: [B, L, rows * columns * C] -> [B, C, H, W]."""
    grid = tokens.unflatten(1, (height // rows, -1)).unflatten(-1, (rows, columns, -1))  # [B, h, w, rows, columns, C]
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Attention(nn.Module):
    """Full self-attention; queries and keys pass a LayerNorm over the whole width before they are split into heads."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.LayerNorm(dim, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim, eps=1e-5) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        q, k, v = (
            values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, L, D / heads]
            for values in (self.q_norm(self.wq(x)), self.k_norm(self.wk(x)), self.wv(x))
        )
        return self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU. The hidden width is 8/3 of the width, rounded up to a multiple of 256."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = -(-int(2 * 4 * dim / 3) // 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RMSNorm(nn.RMSNorm):
    """The stock norm, in float32 whatever the precision around it; written out, since ONNX has no such node."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        assert self.eps is not None
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (scaled * self.weight.float()).to(x.dtype)


class Block(nn.Module):
    """Pre-norm transformer block, Llama style or plain."""

    def __init__(self, config: GSReconConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1: nn.Module
        self.norm2: nn.Module
        self.mlp: nn.Module
        if config.llama_style:
            self.norm1, self.norm2 = RMSNorm(dim, eps=1e-5), RMSNorm(dim, eps=1e-5)
            self.mlp = GatedMLP(dim)
        else:
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.attn = Attention(dim, config.num_heads, qk_norm=config.llama_style)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A stack of blocks; only there to give the official parameter names."""

    def __init__(self, config: GSReconConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class GSRecon(nn.Module):
    """Images and cameras to a splat grid. Tokens of all views attend to each other; rays are the only position code."""

    def __init__(self, config: GSReconConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch_size**2
        self.x_embedder = nn.Linear(pixels * (config.image_channels + PLUCKER_CHANNELS), config.dim)
        self.transformer = Transformer(config)
        self.ln_out = nn.LayerNorm(config.dim)
        self.out_depth = nn.Linear(config.dim, pixels, bias=False)
        self.out_rgb = nn.Linear(config.dim, 3 * pixels, bias=False)
        self.out_scale = nn.Linear(config.dim, 3 * pixels, bias=False)
        self.out_rotation = nn.Linear(config.dim, 4 * pixels, bias=False)
        self.out_opacity = nn.Linear(config.dim, pixels, bias=False)
        for head in (self.out_depth, self.out_scale, self.out_opacity):  # start as a faint shell of medium splats
            nn.init.zeros_(head.weight)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the blocks' inputs for the backward pass, which computes the rest again."""
        self.transformer.gradient_checkpointing = True

    def forward(self, images: Tensor, cameras: Cameras) -> Tensor:
        """Predict the grid.

        Args:
            images: [B, V, C, H, W] in [0, 1]: RGB, then normal and coordinate as configured (9 channels).
            cameras: [B, V] or [V].

        Returns:
            [B, V, 12, H, W] in [-1, 1], channels of `gaussians.GRID_LAYOUT`, unit quaternions.
        """
        height, width = images.shape[-2:]
        rays = plucker_rays(*cameras, height, width, self.config.ray_pixel_rule)
        return self.predict(images, rays.expand(len(images), -1, -1, -1, -1))

    def predict(self, images: Tensor, rays: Tensor) -> Tensor:
        """The same from Pluecker rays [B, V, 6, H, W] by the bundle's rule: what is exported, without geometry."""
        views, channels, height = images.shape[1:4]
        if channels != self.config.image_channels:
            raise ValueError(f"images: {channels} channels, this GSRecon takes {self.config.image_channels}")
        patch = self.config.patch_size
        tokens = patchify(torch.cat([2 * images - 1, rays], dim=2).flatten(0, 1), patch, patch)  # [BV, L/V, patch]
        x = self.x_embedder(tokens).unflatten(0, (-1, views)).flatten(1, 2)  # [B, L, D], view slowest
        x = self.ln_out(self.transformer(x)).unflatten(1, (views, -1)).flatten(0, 1)  # [BV, L/V, D]

        def image(head: nn.Module) -> Tensor:
            return unpatchify(head(x), patch, patch, height)

        grid = torch.cat(
            [
                2 * image(self.out_rgb).sigmoid() - 1,
                2 * image(self.out_scale).sigmoid() - 1,
                F.normalize(image(self.out_rotation), dim=1),
                2 * (image(self.out_opacity) + OPACITY_LOGIT_SHIFT).sigmoid() - 1,
                2 * image(self.out_depth).sigmoid() - 1,
            ],
            dim=1,
        )
        return grid.unflatten(0, (-1, views))


class SplatReconstructor(nn.Module):
    """The graph: images [B, V, C, H, W] in [0, 1] and rays [B, V, 6, H, W] -> splat grid [B, V, 12, H, W]."""

    def __init__(self, gsrecon: GSRecon) -> None:
        super().__init__()
        self.gsrecon = gsrecon

    def forward(self, images: Tensor, rays: Tensor) -> Tensor:
        """`GSRecon.predict`."""
        return self.gsrecon.predict(images, rays)


def gsrecon_config(spec: BackboneSpec) -> GSReconConfig:
    """Architecture of a bundle's GSRecon; rays by the bundle's pixel rule."""
    try:
        return GSReconConfig(**spec.gsrecon, ray_pixel_rule=cast(PixelRule, spec.geometry.ray_pixel_rule))
    except TypeError as error:
        raise ValueError(f"spec.gsrecon: {error}") from None


def build_gsrecon(spec: BackboneSpec) -> GSRecon:
    """GSRecon of a bundle, freshly initialised."""
    return GSRecon(gsrecon_config(spec))
