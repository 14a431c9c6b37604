"""Prompts to text features: how a backbone's encoders are joined, T5's tokens, dropped padding, zeros, warnings."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from diffsplat.backbones.text import TEXTS, TextEncoderSpec, TextSpec
from diffsplat.text.encoders import build_encoder
from diffsplat.text.features import PromptEncoder
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer

CAPTION = "a red blue cube with two small green spheres on it"
CLIP_TOKENS, T5_TOKENS = 8, 10
CLIP: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CLIP_TOKENS,
    "hidden_act": "gelu",
    "projection_dim": 10,
}
T5: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "gated-gelu",
}


def t5_tokenizer() -> str:
    """Laid out as the official T5 file: unigrams with word marks, an end token, no start token, no padding."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in CAPTION.split()] + [("s", -4.0), ("ed", -4.0)]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    inner.add_special_tokens(["<pad>", "</s>", "<unk>"])
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return inner.to_str()


def tiny(text: TextSpec) -> TextSpec:
    """The same recipe for small encoders; the second CLIP is wider than the first."""
    encoders = []
    for index, encoder in enumerate(text.encoders):
        config = T5 if encoder.kind == "t5" else {**CLIP, "hidden_size": 16 - 4 * index, "projection_dim": 10 - index}
        length = T5_TOKENS if encoder.kind == "t5" else CLIP_TOKENS
        encoders.append(replace(encoder, config=config, max_tokens=length))
    width, rows = (T5["d_model"], CLIP_TOKENS) if text.min_width else (0, 0)
    return replace(text, encoders=tuple(encoders), min_width=width, zero_tokens=rows)


class Counted:
    """A network that remembers the shapes of what it was given."""

    def __init__(self, encoder: TextEncoderSpec, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = build_encoder(encoder).eval().requires_grad_(False)
        for name, parameter in self.module.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.5)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, *inputs: torch.Tensor) -> Any:
        assert all(tensor.dtype == torch.int64 for tensor in inputs)  # the types that exported graphs take
        assert all(tensor.shape == inputs[0].shape for tensor in inputs)
        self.shapes.append(tuple(inputs[0].shape))
        return self.module(*inputs)


def prompt_encoder(backbone: str) -> PromptEncoder:
    text = tiny(TEXTS[backbone])
    clip = train_tokenizer([CAPTION], CLIP_TOKENS)
    sources = [t5_tokenizer() if encoder.kind == "t5" else clip for encoder in text.encoders]
    read = [Tokenizer.for_encoder(source, encoder) for source, encoder in zip(sources, text.encoders, strict=True)]
    return PromptEncoder(text, read, [Counted(encoder, seed) for seed, encoder in enumerate(text.encoders)])


def close(actual: torch.Tensor, reference: torch.Tensor) -> bool:
    return bool((actual - reference).abs().max() <= 1e-5 * reference.abs().max())


def test_t5_tokens():
    encoder = TextEncoderSpec("t5", 6, T5, pad_token_id=0, masked=True, lower_case=True)
    tokenizer = Tokenizer.for_encoder(t5_tokenizer(), encoder)
    batch = tokenizer.encode([" A_RED cubes ", "", "two two two two two two"])
    assert batch.input_ids.tolist() == [[4, 5, 7, 15, 1, 0], [1, 0, 0, 0, 0, 0], [9, 9, 9, 9, 9, 1]]
    assert batch.mask.tolist() == [[True] * 5 + [False], [True] + [False] * 5, [True] * 6]
    assert [unread.cut for unread in batch.unread] == ["", "", "two"]
    assert [unread.is_all for unread in batch.unread] == [False, True, False]
    short = tokenizer.encode(["a red", ""], drop_padding=True)
    assert short.input_ids.tolist() == [[4, 5, 1], [1, 0, 0]]
    assert short.mask.tolist() == [[True] * 3, [True, False, False]]
    tokenizer = Tokenizer.for_encoder(t5_tokenizer(), replace(encoder, max_tokens=16, lower_case=False))
    assert [unread.unknown for unread in tokenizer.encode(["a 猫 cube 猫 Ω", "RED"]).unread] == [("猫", "Ω"), ("RED",)]


def test_marks_must_fit_the_encoder():
    clip, t5 = TextEncoderSpec("clip", 8, CLIP), TextEncoderSpec("t5", 8, T5)
    with pytest.raises(ValueError, match="one start and one end token"):
        Tokenizer.for_encoder(t5_tokenizer(), clip)
    with pytest.raises(ValueError, match="one end token after"):
        Tokenizer.for_encoder(train_tokenizer([CAPTION], 8), t5)


def test_padding_token():
    for backbone, pads in (("sdxl", [13, 0]), ("sd21", [0]), ("sd15", [13]), ("pixart_sigma", [0])):
        tokens = [tokenizer.encode([""]).input_ids[0] for tokenizer in prompt_encoder(backbone).tokenizers]
        assert [int(ids[-1]) for ids in tokens] == pads
        assert all((ids == pad).sum() >= len(ids) - 2 for ids, pad in zip(tokens, pads, strict=True))


@pytest.mark.parametrize("backbone", TEXTS)
def test_shapes(backbone: str):
    encoder = prompt_encoder(backbone)
    features, warnings, unread = encoder.encode(["a red cube", "two spheres", None], drop_padding=False)
    assert features.embeddings.shape == (3, encoder.spec.tokens, encoder.spec.width)
    assert features.pooled.shape == (3, encoder.spec.pooled_width)
    assert features.mask.shape == (3, encoder.spec.tokens) and features.mask.dtype == torch.bool
    assert features.mask.all() != backbone.startswith("pixart")
    assert warnings == ((), (), ()) and unread == (False, False, False)


def test_one_encoder_is_passed_through():
    encoder = prompt_encoder("sd15")
    (network,), (tokenizer,) = encoder.encoders, encoder.tokenizers
    features = encoder.encode(["a red cube", None]).features  # None: the empty text
    assert torch.equal(features.embeddings, network(tokenizer.encode(["a red cube", ""]).input_ids))
    assert features.mask.all() and features.pooled.shape == (2, 0)


def test_sdxl_stands_side_by_side_and_leaves_a_missing_negative_zero():
    encoder = prompt_encoder("sdxl")
    (first, second), tokens = encoder.encoders, [t.encode(["a red cube", ""]).input_ids for t in encoder.tokenizers]
    left, right = first(tokens[0]), second(tokens[1])
    features = encoder.encode(["a red cube", ""]).features
    assert torch.equal(features.embeddings, torch.cat([left, right.embeddings], dim=-1))
    assert torch.equal(features.pooled, right.pooled)
    first.shapes.clear()
    halves = encoder.encode([None, "a red cube"]).features
    assert first.shapes == [(1, CLIP_TOKENS)]  # nothing runs for what is left out
    for zeros in (halves.embeddings[0], halves.pooled[0]):
        assert not zeros.any()
    assert close(halves.embeddings[1], features.embeddings[0]) and close(halves.pooled[1], features.pooled[0])
    nothing = encoder.encode([None]).features
    assert len(first.shapes) == 1
    assert nothing.embeddings.shape == features.embeddings[:1].shape and not nothing.embeddings.any()


def test_sd3_puts_t5_behind_and_zeros_in_its_place():
    for backbone in ("sd3", "sd3_no_t5"):
        encoder = prompt_encoder(backbone)
        tokens = [tokenizer.encode(["a red cube"]).input_ids for tokenizer in encoder.tokenizers]
        outputs = [network(ids) for network, ids in zip(encoder.encoders, tokens, strict=True)]
        features = encoder.encode(["a red cube"]).features
        clips = torch.cat([output.embeddings for output in outputs[:2]], dim=-1)
        top, behind = features.embeddings.split([CLIP_TOKENS, encoder.spec.tokens - CLIP_TOKENS], dim=1)
        assert torch.equal(top[..., : clips.shape[2]], clips)
        assert not top[..., clips.shape[2] :].any()
        assert torch.equal(features.pooled, torch.cat([output.pooled for output in outputs[:2]], dim=-1))
        if backbone == "sd3":
            assert torch.equal(behind, outputs[2])  # no token of it is masked or dropped
        else:
            assert behind.shape[1] == CLIP_TOKENS and not behind.any()


def test_padding_of_pixart_costs_nothing():
    """The encoder sees as many tokens as the longest prompt, and every prompt reads the same as alone, padded."""
    encoder = prompt_encoder("pixart_sigma")
    (network,) = encoder.encoders
    prompts = ["A_red cube with two spheres ", "red", ""]
    together = encoder.encode(prompts).features
    assert network.shapes.pop() == (3, 7)
    assert together.mask.sum(dim=1).tolist() == [7, 2, 1]
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt], drop_padding=False).features
        assert network.shapes.pop() == (1, T5_TOKENS)
        assert close(together.embeddings[row][together.mask[row]], alone.embeddings[0][alone.mask[0]])


def test_warnings():
    long = "red " * 6 + "two cubes"
    for backbone in ("sd15", "sdxl"):  # CLIPs of one backbone read the same tokens: one warning
        encoded = prompt_encoder(backbone).encode([long, "a Zebra", None])
        assert encoded.warnings == (
            ("the text encoder reads 8 tokens, cut off: 'two cubes'",),
            ("the text encoder does not know 'Zebra'",),
            (),
        )
    assert prompt_encoder("sd3").encode([long, "red " * 12, "猫"]).warnings == (
        ("CLIP reads 8 tokens, cut off: 'two cubes'",),
        (f"CLIP reads 8 tokens, cut off: '{'red ' * 5}red'", "T5 reads 10 tokens, cut off: 'red red red'"),
        ("CLIP does not know '猫'", "T5 does not know '猫'"),
    )
    many = " ".join(f"{letter}{'x' * 50}" for letter in "abcdefghij")
    ((cut, unknown),) = prompt_encoder("sd15").encode([many]).warnings
    assert unknown.count("'") == 12 and f"'a{'x' * 39} ...'" in unknown
    assert cut.endswith(" ...'") and len(cut) < 200


def test_a_prompt_without_a_token_is_unread():
    nothing = ["🐉", "!!!", "\u200b", "\0"]
    features, warnings, unread = prompt_encoder("sd15").encode([*nothing, " ", "a red cube"])
    assert unread == (True, True, True, True, False, False)
    assert warnings == (
        ("the text encoder reads nothing of it", "the text encoder does not know '🐉'"),
        *[("the text encoder reads nothing of it",)] * 3,
        (),
        (),
    )
    # what one of two encoders reads is read
    assert prompt_encoder("sd3").encode(["!!!", None]).unread == (False, False)


def test_weights_give_one_hint():
    hint = "weights such as '(red:1.3)' are not supported and read as plain text"
    assert prompt_encoder("sd15").encode(["(red:1.3) cube", "(red:1.3) [cube: .5]"]).warnings == ((hint,), (hint,))
    for prompt in ("<lora:toy:0.8> cube", "[red:0.5] cube", "(red)1.3 cube", "(Zebra:-1) cube"):
        (warnings,) = prompt_encoder("sd15").encode([prompt]).warnings
        assert [warning for warning in warnings if "weights" in warning] == [
            f"weights such as {prompt.removesuffix(' cube')!r} are not supported and read as plain text"
        ]
        assert not any(number in warning for warning in warnings if "know" in warning for number in "01358")
    (warnings,) = prompt_encoder("sd15").encode(["red cube (two 4:3)"]).warnings
    assert warnings == ("the text encoder does not know '4', '3'",)


def test_serving_needs_no_transformers():
    code = "import sys, diffsplat.text.features; print(*({'transformers', 'diffusers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not result.stdout.strip()
