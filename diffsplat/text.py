"""Token ids -> text embeddings.

Axes: R prompts, L tokens, D width of an embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffsplat.backbones import BackboneSpec


class TextEncoder(nn.Module):
    """Stock CLIP text model, reduced to what the denoiser reads: the last hidden state after the final norm.

    Causal, and without a padding mask: the padding tokens are part of what SD1.5 was trained on.
    State-dict names are those of official checkpoints (`text_model.…`), which transformers 5 itself no longer writes;
    loading also takes transformers 5's names and ignores the `position_ids` of old files.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.text_model = CLIPTextModel(config)
        self.register_load_state_dict_pre_hook(_map_official_names)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[R, L] int64 -> [R, L, D]."""
        model = self.text_model
        hidden = model.embeddings(input_ids=input_ids)
        length = input_ids.shape[1]
        # transformers' own mask code does not trace; this is the same mask
        future = torch.full((length, length), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
        hidden = model.encoder(inputs_embeds=hidden, attention_mask=future[None, None]).last_hidden_state
        return model.final_layer_norm(hidden)


def _map_official_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [key for key in state if key.startswith(prefix)]:
        local = name.removeprefix(prefix)
        if local.endswith("embeddings.position_ids"):
            del state[name]
        elif local.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            state[f"{prefix}text_model.{local}"] = state.pop(name)


def build_text_encoder(spec: BackboneSpec) -> TextEncoder:
    """The text encoder of a backbone, random weights.

    Raises:
        ValueError: the spec leaves `vocab_size` open (training writes it from its tokenizer).
    """
    assert spec.text_encoder.kind == "clip", spec.text_encoder.kind
    if "vocab_size" not in spec.text_encoder.config:
        raise ValueError(f"backbone {spec.name!r}: text_encoder.config has no vocab_size, the size of its tokenizer")
    # start and end are the last ids, in CLIP's vocabulary and in ours; transformers' defaults are CLIP's numbers
    end = spec.text_encoder.config["vocab_size"] - 1
    marks = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config: Any = CLIPTextConfig(**{**marks, **spec.text_encoder.config})
    config._attn_implementation = "sdpa"
    return TextEncoder(config)
