"""DINOv2 with registers (Oquab et al. 2023, Darcet et al. 2023), with the parameter names of the official checkpoints.

Axes: B images, L patches, T tokens (class, registers, patches), D width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DinoConfig:
    """Architecture of a DINOv2 backbone; the defaults are ViT-B/14 with registers."""

    image_size: int = 518  # that the position table was trained for
    patch_size: int = 14
    dim: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    num_registers: int = 4
    mlp_ratio: int = 4


class DinoTokens(NamedTuple):
    """Features after the last norm."""

    class_token: Tensor  # [B, D]
    registers: Tensor  # [B, registers, D]
    patches: Tensor  # [B, L, D] row-major


class PatchEmbed(nn.Module):
    """Patches to tokens; a module of its own for the official parameter names."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, L, D]."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Full self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, heads, D / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, D / heads]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads)
        self.mlp = MLP(dim, config.mlp_ratio * dim)
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoV2(nn.Module):
    """Vision transformer of Oquab et al. 2023 with the registers of Darcet et al. 2023."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        dim, side = config.dim, config.image_size // config.patch_size
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, config.num_registers, dim))
        self.mask_token = nn.Parameter(
            torch.zeros(1, dim)
        )  # used by DINOv2's training only, but part of its checkpoint
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side * side, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def position_table(self, height: int, width: int) -> Tensor:
        """Positions of the class token and the patches of images of this size, in pixels: [1, 1 + L, D].

        Bicubic with antialiasing, to a given number of patches rather than by a scale factor (offset 0), as in the
        official backbones with registers.
        """
        side = self.config.image_size // self.config.patch_size
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(-1, (side, side))  # [1, D, side, side]
        resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor, positions: Tensor | None = None) -> DinoTokens:
        """Encode images.

        Args:
            images: [B, 3, H, W] normalised by ImageNet's mean and deviation; sides are multiples of the patch size.
            positions: `position_table` of their size, if the caller has it already.
        """
        if positions is None:
            positions = self.position_table(images.shape[-2], images.shape[-1])
        batch, registers = images.shape[0], self.config.num_registers
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.patch_embed(images)], dim=1) + positions
        x = torch.cat([x[:, :1], self.register_tokens.expand(batch, -1, -1), x[:, 1:]], dim=1)  # [B, T, D]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return DinoTokens(x[:, 0], x[:, 1 : 1 + registers], x[:, 1 + registers :])
