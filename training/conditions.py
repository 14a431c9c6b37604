"""What a denoiser is told of an object besides its cameras: text features, and latents of a condition image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diffsplat.backbones.text import TextSpec
from diffsplat.text.features import PromptEncoder, TextFeatures
from diffsplat.text.tokenizer import Tokenizer
from training.text_store import TextStore


class TextSource(Protocol):
    """Text features of objects, as serving's `PromptEncoder` gives them."""

    def features(self, captions: Sequence[str], uids: Sequence[str], dropped: Tensor) -> TextFeatures:
        """Features of B objects; those of the null text where `dropped` [B] is set. Masks lie on the host."""
        ...


@dataclass(frozen=True)
class PromptText:
    """Captions through text encoders at every step: those that are trained, or frozen ones."""

    prompts: PromptEncoder

    def features(self, captions: Sequence[str], uids: Sequence[str], dropped: Tensor) -> TextFeatures:
        """See `TextSource`."""
        texts = [None if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
        return self.prompts.encode(texts).features


@dataclass(frozen=True)
class StoredText:
    """Features that `encode-text` has stored, by uid."""

    store: TextStore

    def features(self, captions: Sequence[str], uids: Sequence[str], dropped: Tensor) -> TextFeatures:
        """See `TextSource`."""
        return self.store.features(uids, dropped)


def trained_text(spec: TextSpec, tokenizer: Tokenizer, encoder: nn.Module) -> PromptText:
    """The text of a backbone whose only text encoder is trained with its denoiser, with gradients."""

    def encode(*inputs: Tensor) -> Tensor:
        device = next(encoder.parameters()).device
        embeddings: Tensor = encoder(*(tensor.to(device) for tensor in inputs))
        return embeddings

    return PromptText(PromptEncoder(spec, [tokenizer], [encode]))


def condition_latents(moments: Tensor, dropped: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Latents of condition images, sampled from the image autoencoder's posterior; zeros where dropped.

    Args:
        moments: [B, 2, C, h, w] mean and standard deviation, scaled.
        dropped: [B] bool.
        shift: Subtracted; serving does not, so it is 0, but published training did (SD3: `spec.scaled_shift`).
        generator: Of the noise, on the host.

    Returns:
        [B, C, h, w] on the device of `moments`.
    """
    mean, deviation = moments.unbind(1)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    kept = (~dropped).to(mean.device, mean.dtype).view(-1, 1, 1, 1)
    return (mean + deviation * noise - shift) * kept
