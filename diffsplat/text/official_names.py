"""Names of text encoders' tensors. Ours are those of official checkpoint files.

transformers 5 uses others: it drops `text_model.` from CLIP models without a projection and lists T5's embedding twice.
"""

from collections.abc import Mapping

from torch import Tensor

from diffsplat.backbones.text import EncoderKind

_EMBEDDING, _TIED = "shared.weight", "encoder.embed_tokens.weight"  # T5


def our_name(name: str) -> str | None:
    """Our name of a tensor of a text encoder, official or transformers 5's; None if it is not a weight."""
    if name.endswith("embeddings.position_ids"):  # a constant in old files
        return None
    if name == _TIED:
        return _EMBEDDING
    is_bare_clip = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{name}" if is_bare_clip else name


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's state dict under our names, in the order given.

    Raises:
        ValueError: two different tensors map to the same name; the message names both.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = our_name(name)
        if target is None:
            continue
        if target in ours and not equal_tensors(ours[target], tensor):
            raise ValueError(f"{name}: differs from another tensor called {target}")
        ours.setdefault(target, tensor)
    return ours


def to_transformers(kind: EncoderKind, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names of transformers 5's CLIPTextModel, ...WithProjection or T5EncoderModel."""
    if kind == "clip":
        return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    if kind == "t5":
        return {**state, _TIED: state[_EMBEDDING]}
    return dict(state)


def equal_tensors(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())
