"""CLIP and T5 encoders against transformers' own classes, their exported graphs, and the sizes of the official ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.backbones.text import TEXTS, TextEncoderSpec, TextSpec
from diffsplat.text.encoders import PooledText, T5TextEncoder, build_encoder
from diffsplat.text.official_names import to_transformers

END = 29
CLIP: dict[str, Any] = {
    "vocab_size": END + 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "hidden_act": "gelu",
    "projection_dim": 10,
    "bos_token_id": END - 1,
    "eos_token_id": END,
    "pad_token_id": END,
}
T5: dict[str, Any] = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "feed_forward_proj": "gated-gelu",
}
CLIP_ENCODER = TextEncoderSpec("clip_projection", 12, CLIP, "second_to_last")
T5_ENCODER = TextEncoderSpec("t5", 12, T5, pad_token_id=0, masked=True)
# padded with the end token, and with 0
CLIP_IDS = torch.tensor([[28, 3, 4, 5, 29, 29, 29, 29, 29, 29, 29, 29], [28, 7, 29, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
T5_IDS = torch.tensor([[9, 4, 3, 7, 8, 2, 11, 12, 13, 1, 0, 0], [5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])


def built(encoder: TextEncoderSpec) -> Any:
    torch.manual_seed(0)
    module = build_encoder(encoder).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "norm" not in name:  # large enough that attention and activations matter
            parameter.normal_(std=0.5)
    return module


def close(actual: Tensor, reference: Tensor, tolerance: float = 1e-5) -> bool:
    return actual.shape == reference.shape and bool(
        (actual - reference).abs().max() <= tolerance * reference.abs().max()
    )


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return built(CLIP_ENCODER)


@pytest.fixture(scope="module")
def t5() -> T5TextEncoder:
    return built(T5_ENCODER)


def test_clip_equals_transformers(clip):
    stock = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)).eval()
    stock.load_state_dict(to_transformers("clip_projection", clip.state_dict()))
    with torch.no_grad():
        reference = stock(CLIP_IDS, output_hidden_states=True)
    text = clip(CLIP_IDS)
    assert close(text.embeddings, reference.hidden_states[-2])
    assert close(text.pooled, reference.text_embeds)
    assert not close(text.embeddings, reference.last_hidden_state, 0.1)
    last = build_encoder(replace(CLIP_ENCODER, layer="last")).eval()
    last.load_state_dict(clip.state_dict())
    text = last(CLIP_IDS)
    assert close(text.embeddings, reference.last_hidden_state)
    assert close(text.pooled, reference.text_embeds)


def test_layers_behind_the_state_that_is_read_are_not_run(clip):
    """SDXL reads nothing of CLIP-L behind its second-to-last layer; the pooled embedding needs the last one."""
    plain = build_encoder(replace(CLIP_ENCODER, kind="clip")).eval()
    plain.load_state_dict({k: v for k, v in clip.state_dict().items() if k != "text_projection.weight"})
    calls: list[int] = []
    for module, layers_run in ((plain, 2), (clip, 3)):
        calls.clear()
        handles = [
            layer.register_forward_hook(lambda *_: calls.append(1)) for layer in module.text_model.encoder.layers
        ]
        result = module(CLIP_IDS)
        for handle in handles:
            handle.remove()
        assert len(calls) == layers_run
        assert torch.equal(result.embeddings if isinstance(result, PooledText) else result, clip(CLIP_IDS).embeddings)


def test_pooling_position_is_that_of_the_largest_id(clip):
    """Whatever stands behind the first end token does not reach the pooled embedding."""
    other = CLIP_IDS.clone()
    other[:, 6:] = 1
    assert close(clip(other).pooled, clip(CLIP_IDS).pooled)
    other[0, 2] = 9
    assert not close(clip(other).pooled[:1], clip(CLIP_IDS).pooled[:1], 1e-2)


@pytest.mark.parametrize("masked", [True, False])
def test_t5_equals_transformers(masked, t5):
    module = build_encoder(replace(T5_ENCODER, masked=masked)).eval()
    module.load_state_dict(t5.state_dict())
    stock = T5EncoderModel(T5Config(**T5)).eval()
    stock.load_state_dict(to_transformers("t5", module.state_dict()))
    mask = torch.tensor([[1] * 10 + [0] * 2, [1] * 2 + [0] * 10])
    with torch.no_grad():
        reference = stock(T5_IDS, attention_mask=mask if masked else torch.ones_like(mask)).last_hidden_state
        text = module(T5_IDS, mask) if masked else module(T5_IDS)
    assert close(text, reference)
    if masked:  # so that dropping padding is exact
        for row, length in ((0, 10), (1, 2)):
            assert close(module(T5_IDS[row : row + 1, :length], mask[row : row + 1, :length])[0], text[row, :length])
    else:
        assert not close(module(T5_IDS[1:, :2])[0], text[1, :2], 1e-2)  # padding is read


def export(
    module: nn.Module, inputs: tuple[Tensor, ...], outputs: list[str], path: Path
) -> onnxruntime.InferenceSession:
    names = ["ids", "mask"][: len(inputs)]
    free = {name: {0: "rows", 1: "tokens"} for name in names}
    torch.onnx.export(
        module, inputs, str(path), dynamo=False, input_names=names, output_names=outputs, dynamic_axes=free
    )
    return onnxruntime.InferenceSession(str(path))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_onnx_graph_of_a_clip_with_projection(clip, tmp_path: Path):
    session = export(clip, (CLIP_IDS[:, :9],), ["embeddings", "pooled"], tmp_path / "clip.onnx")
    for ids in (CLIP_IDS, CLIP_IDS[:1]):
        result = [torch.from_numpy(array) for array in session.run(None, {"ids": ids.numpy()})]
        assert all(close(actual, reference) for actual, reference in zip(result, clip(ids), strict=True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_onnx_graph_of_a_masked_t5(t5, tmp_path: Path):
    mask = (T5_IDS != 0).long()
    session = export(t5, (T5_IDS[:, :7], mask[:, :7]), ["embeddings"], tmp_path / "t5.onnx")
    for rows, length in ((2, 12), (1, 10), (2, 3)):
        fed = T5_IDS[:rows, :length], mask[:rows, :length]
        (result,) = session.run(None, {"ids": fed[0].numpy(), "mask": fed[1].numpy()})
        assert close(torch.from_numpy(result), t5(*fed))


def parameters(encoder: TextEncoderSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_encoder(encoder).parameters())


@pytest.mark.parametrize(
    ("backbone", "counts"),
    [
        ("sd15", [123_060_480]),
        ("sd21", [340_387_840]),
        ("sdxl", [123_060_480, 694_659_840]),
        ("sd3", [123_650_304, 694_659_840, 4_762_310_656]),
        ("pixart_sigma", [4_762_310_656]),
    ],
)
def test_official_sizes(backbone: str, counts: list[int]):
    assert [parameters(encoder) for encoder in TEXTS[backbone].encoders] == counts


@pytest.mark.parametrize("spec", [spec for spec in BACKBONES.values() if not spec.name.startswith(("pico", "nano"))])
def test_texts_fit_their_denoisers(spec: BackboneSpec):
    """Tokens by the fact pages; widths are what the denoiser takes."""
    tokens = {"unet": 77, "sd3": 77 + 256}.get(spec.family) or {"alpha": 120, "sigma": 300}[spec.name.split("_")[1]]
    config = spec.denoiser
    width = config[
        {"unet": "cross_attention_dim", "pixart": "caption_channels", "sd3": "joint_attention_dim"}[spec.family]
    ]
    assert (spec.text.tokens, spec.text.width) == (tokens, width)
    if spec.family == "sd3":
        assert spec.text.pooled_width == config["pooled_projection_dim"]
    if config.get("addition_embed_type"):
        sizes = 6 * config["addition_time_embed_dim"]
        assert spec.text.pooled_width + sizes == config["projection_class_embeddings_input_dim"]


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_without_t5_zero_rows_stand_in(name: str):
    full, short = TEXTS[name], TEXTS[f"{name}_no_t5"]
    assert (short.tokens, short.width, short.pooled_width) == (77 + 77, full.width, full.pooled_width)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextEncoderSpec("bert", 77), "kind = 'bert'"),
        (lambda: TextEncoderSpec("t5", 77, layer="second_to_last"), "layer = 'second_to_last'"),
        (lambda: TextEncoderSpec("clip", 77, masked=True), "masked = True"),
        (lambda: TextSpec(()), "encoders = "),
        (lambda: TextSpec((T5_ENCODER, CLIP_ENCODER)), "at most one t5"),
        (lambda: TextSpec((CLIP_ENCODER, replace(CLIP_ENCODER, max_tokens=11))), "max_tokens"),
        (lambda: TextSpec((T5_ENCODER,), zero_negative=True), "zero_negative"),
        (lambda: build_encoder(TextEncoderSpec("t5", 77, {"d_model": 8})), "vocab_size"),
    ],
)
def test_impossible_specs_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
