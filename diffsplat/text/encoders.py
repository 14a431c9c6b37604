"""Token ids -> text embeddings: stock transformers models, reduced to what denoisers read.

Axes: R prompts, L tokens, D width of an embedding, P width of a pooled embedding.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from diffsplat.backbones.text import ClipLayer, TextEncoderSpec
from diffsplat.text.official_names import from_official


class PooledText(NamedTuple):
    """Output of an encoder with a projection."""

    embeddings: Tensor  # [R, L, D]
    pooled: Tensor  # [R, P]


class _Encoder(nn.Module):
    """State-dict names are those of official checkpoints; loading accepts every spelling that `from_official` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_map_official_names)


def _map_official_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    official = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    state.update({prefix + name: tensor for name, tensor in from_official(official).items()})


class TextEncoder(_Encoder):
    """Stock CLIP text model: one of its hidden states, and with a projection the pooled embedding too.

    Causal, and without a padding mask: the denoisers were trained with the padding tokens. Layers after the hidden
    state that is read do not run.
    """

    def __init__(self, config: CLIPTextConfig, layer: ClipLayer = "last", projection: bool = False) -> None:
        super().__init__()
        self.text_model = CLIPTextModel(config)
        width: Any = config.projection_dim
        self.text_projection = nn.Linear(config.hidden_size, width, bias=False) if projection else None
        self.layer = layer

    def forward(self, input_ids: Tensor) -> Tensor | PooledText:
        """[R, L] int64 -> [R, L, D]; with a projection (embeddings [R, L, D], pooled [R, P])."""
        model = self.text_model
        hidden = model.embeddings(input_ids=input_ids)
        length = input_ids.shape[1]
        # the same mask as transformers', whose code cannot be traced
        future = torch.full((length, length), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
        mask = future[None, None]
        if self.layer == "last":
            last = model.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
            last = embeddings = model.final_layer_norm(last)
        else:
            *layers, last_layer = model.encoder.layers
            for layer in layers:
                hidden = layer(hidden, mask)
            embeddings = hidden
            if self.text_projection is not None:
                last = last_layer(hidden, mask)
        if self.text_projection is None:
            return embeddings
        # the end token has the largest id; if it is also the padding, the first one counts
        end = input_ids.argmax(dim=1)
        at_end = last.gather(1, end[:, None, None].expand(-1, 1, last.shape[2]))[:, 0]
        pooled = self.text_projection(at_end if self.layer == "last" else model.final_layer_norm(at_end))
        return PooledText(embeddings, pooled)


class T5TextEncoder(_Encoder):
    """Stock T5 encoder. Its token embedding exists once, under its official name `shared`."""

    def __init__(self, config: T5Config, masked: bool) -> None:
        super().__init__()
        stack: Any = T5Stack(config)
        self.shared = stack.embed_tokens
        del stack.embed_tokens
        self.encoder = stack
        self.masked = masked

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden state, after the final norm.

        Args:
            input_ids: [R, L] int64.
            mask: [R, L] int64, 0 on padding, which no token attends to. A masked encoder needs it, so that padding
                does not change the result; other encoders read padding as text, which requires a fixed L.

        Returns:
            [R, L, D].
        """
        assert (mask is not None) == self.masked, "a mask is for masked encoders"
        length = input_ids.shape[1]
        # every layer adds the first layer's bias; transformers' mask code cannot be traced
        bias = self.encoder.block[0].layer[0].SelfAttention.compute_bias(length, length)  # [1, heads, L, L]
        if mask is not None:
            bias = bias.masked_fill(mask[:, None, None] == 0, torch.finfo(bias.dtype).min)
        hidden = self.shared(input_ids)
        for block in self.encoder.block:
            hidden = block(hidden, position_bias=bias)[0]
        return self.encoder.final_layer_norm(hidden)


def build_encoder(encoder: TextEncoderSpec, name: str = "text_encoder") -> TextEncoder | T5TextEncoder:
    """Build a text encoder with random weights.

    Args:
        encoder: its specification.
        name: its name in errors.

    Raises:
        ValueError: the spec leaves `vocab_size` open (training writes it from its tokenizer).
    """
    if "vocab_size" not in encoder.config:
        raise ValueError(f"{name}: config has no vocab_size, the size of its tokenizer")
    config: Any
    if encoder.kind == "t5":
        # no generation and no dropout: official encoders are never trained
        config = T5Config(**{**encoder.config, "dropout_rate": 0.0, "use_cache": False, "is_encoder_decoder": False})
        config._attn_implementation = "sdpa"
        return T5TextEncoder(config, encoder.masked)
    # start and end tokens are the last ids, in CLIP's vocabulary and in ours
    end = encoder.config["vocab_size"] - 1
    marks = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config = CLIPTextConfig(**{**marks, **encoder.config})
    config._attn_implementation = "sdpa"
    return TextEncoder(config, encoder.layer, encoder.kind == "clip_projection")
