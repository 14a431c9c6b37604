"""Text encoders of every backbone, and how their outputs become the text that a denoiser reads.

Imports nothing of the library, so that the table of backbones can hold these types.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EncoderKind = Literal["clip", "clip_projection", "t5"]
TEXT_ENCODER = "text_encoder"  # network, graph and file of the first encoder; the next is text_encoder_2
ClipLayer = Literal["last", "second_to_last"]


@dataclass(frozen=True)
class TextEncoderSpec:
    """One text encoder with its tokenizer. `config` are the constructor arguments of CLIPTextConfig or T5Config."""

    kind: EncoderKind  # clip_projection: gives a pooled embedding too
    max_tokens: int
    config: dict[str, Any] = field(default_factory=dict)
    layer: ClipLayer = "last"  # CLIP: the last state after the final norm, or the one before it without the norm
    pad_token_id: int | None = None  # None: the tokenizer file's own, or else its end token
    masked: bool = False  # T5: nothing attends to padding, here or in the denoiser
    lower_case: bool = False  # strip and lower-case prompts before the tokenizer sees them

    def __post_init__(self) -> None:
        if self.kind not in ("clip", "clip_projection", "t5"):
            raise ValueError(f"kind = {self.kind!r}: must be clip, clip_projection or t5")
        if self.layer not in ("last", "second_to_last") or (self.kind == "t5" and self.layer != "last"):
            raise ValueError(f"layer = {self.layer!r}: must be last, or second_to_last for a CLIP")
        if self.masked and self.kind != "t5":
            raise ValueError(f"masked = {self.masked}: must be false for the kind {self.kind}")

    @property
    def width(self) -> int:
        """Channels of its embeddings."""
        return self.config["d_model" if self.kind == "t5" else "hidden_size"]

    @property
    def pooled_width(self) -> int:
        """Channels of its pooled embedding, 0 without one."""
        return self.config["projection_dim"] if self.kind == "clip_projection" else 0


@dataclass(frozen=True)
class TextSpec:
    """All text encoders of a backbone and how their outputs are joined.

    CLIP embeddings are concatenated along the channels; T5's tokens follow them; the narrower part is padded with zero
    channels. Pooled embeddings are concatenated.
    """

    encoders: tuple[TextEncoderSpec, ...]
    min_width: int = 0  # embeddings have at least so many channels
    zero_tokens: int = 0  # zero tokens appended at the end
    zero_negative: bool = False  # an omitted negative prompt is all zeros, pooled too; False: the empty text

    def __post_init__(self) -> None:
        # JSON gives dicts
        encoders = (e if isinstance(e, TextEncoderSpec) else TextEncoderSpec(**e) for e in self.encoders)
        object.__setattr__(self, "encoders", tuple(encoders))
        kinds = [encoder.kind for encoder in self.encoders]
        clips = [encoder for encoder in self.encoders if encoder.kind != "t5"]
        if not kinds or "t5" in kinds[:-1]:
            raise ValueError(f"encoders = {kinds}: must be any number of CLIPs, then at most one t5")
        if len({clip.max_tokens for clip in clips}) > 1:
            raise ValueError(f"encoders: max_tokens {[c.max_tokens for c in clips]} must be the same for all CLIPs")
        if self.zero_negative and self.encoders[-1].masked:
            raise ValueError("zero_negative = True: must be false with a masked encoder")

    @property
    def clips(self) -> tuple[TextEncoderSpec, ...]:
        """The CLIPs among the encoders."""
        return tuple(encoder for encoder in self.encoders if encoder.kind != "t5")

    @property
    def tokens(self) -> int:
        """Tokens of an embedding, L, before padding is dropped."""
        appended = sum(encoder.max_tokens for encoder in self.encoders if encoder.kind == "t5") + self.zero_tokens
        return appended + (self.clips[0].max_tokens if self.clips else 0)

    @property
    def width(self) -> int:
        """Channels of an embedding, D."""
        t5 = max((encoder.width for encoder in self.encoders if encoder.kind == "t5"), default=0)
        return max(sum(clip.width for clip in self.clips), t5, self.min_width)

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled embedding, P; 0 without one."""
        return sum(encoder.pooled_width for encoder in self.encoders)

    def numbered(self, name: str) -> tuple[str, ...]:
        """NAME, NAME_2, NAME_3 ..., one for every encoder: official folders, networks, graphs and files of a bundle."""
        return tuple(name if index == 1 else f"{name}_{index}" for index in range(1, len(self.encoders) + 1))


def _clip(width: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": activation,
    }


CLIP_L = _clip(768, 12, 12, "quick_gelu")
# SD2.1 reads the second-to-last state after the final norm: its files lack the last layer, so it is the last state here
OPEN_CLIP_H = _clip(1024, 23, 16, "gelu")
OPEN_CLIP_BIG_G = {**_clip(1280, 32, 20, "gelu"), "projection_dim": 1280}
T5_XXL: dict[str, Any] = {  # T5 v1.1, encoder only
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}

# CLIP-L pads with its end token, which its tokenizer's file does not name; the others pad with id 0
_SD3_CLIPS = (
    TextEncoderSpec("clip_projection", 77, {**CLIP_L, "projection_dim": 768}, "second_to_last"),
    TextEncoderSpec("clip_projection", 77, OPEN_CLIP_BIG_G, "second_to_last", pad_token_id=0),
)


def _pixart(max_tokens: int) -> TextSpec:
    return TextSpec((TextEncoderSpec("t5", max_tokens, T5_XXL, pad_token_id=0, masked=True, lower_case=True),))


_SD3 = TextSpec((*_SD3_CLIPS, TextEncoderSpec("t5", 256, T5_XXL, pad_token_id=0)))
# without T5, its place is taken by as many zero tokens as CLIP (not T5) has
_SD3_NO_T5 = TextSpec(_SD3_CLIPS, min_width=_SD3.width, zero_tokens=77)

# backbone -> its text
TEXTS: Mapping[str, TextSpec] = {
    "sd15": TextSpec((TextEncoderSpec("clip", 77, CLIP_L),)),
    "sd21": TextSpec((TextEncoderSpec("clip", 77, OPEN_CLIP_H, pad_token_id=0),)),
    "sdxl": TextSpec(
        (
            TextEncoderSpec("clip", 77, CLIP_L, "second_to_last"),
            TextEncoderSpec("clip_projection", 77, OPEN_CLIP_BIG_G, "second_to_last", pad_token_id=0),
        ),
        zero_negative=True,
    ),
    "pixart_alpha": _pixart(120),
    "pixart_sigma": _pixart(300),
    "sd3": _SD3,
    "sd3_no_t5": _SD3_NO_T5,
    "sd35": _SD3,
    "sd35_no_t5": _SD3_NO_T5,
}
