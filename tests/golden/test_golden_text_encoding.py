"""Text encoding of every backbone with the reference's tiny CLIP-L, CLIP-bigG and T5, tokens included."""

import re
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from diffsplat.backbones.text import TEXTS, TextEncoderSpec, TextSpec
from diffsplat.text.encoders import build_encoder
from diffsplat.text.features import EncodedPrompts, PromptEncoder
from diffsplat.text.official_names import from_official
from diffsplat.text.tokenizer import Tokenizer

# names of the encoders in the file, in the order in which a backbone has them
ENCODERS = {
    "sd15": ("clip_l",),
    "sdxl": ("clip_l", "clip_g"),
    "sd3": ("clip_l", "clip_g", "t5"),
    "sd3_no_t5": ("clip_l", "clip_g"),
    "pixart_alpha": ("t5",),
    "pixart_sigma": ("t5",),
}
MASKED = ("pixart_alpha", "pixart_sigma")


def backbone(case: str) -> str:
    return case.removesuffix("_explicit_negative")


def table_tokenizer(table: dict[str, list[int]], start: bool) -> str:
    """A tokenizer.json that has the ids which the reference's stand-in gives to a few whole prompts, and no others."""
    marks = {"s": [table[""][0]] if start else [], "e": [table[""][-1]]}
    rewrite: list[normalizers.Normalizer] = []
    for prompt, ids in table.items():
        inside = ids[len(marks["s"]) : -1]
        if inside:
            rewrite.append(
                normalizers.Replace(Regex(rf"\A{re.escape(prompt)}\z"), " ".join(f"id{token}" for token in inside))
            )
    used = sorted({token for ids in table.values() for token in ids})
    inner = tokenizers.Tokenizer(
        models.WordLevel({"?": 10**6, **{f"id{token}": token for token in used}}, unk_token="?")
    )
    inner.normalizer = normalizers.Sequence(rewrite)
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = [f"id{marks[mark][0]}" for mark in "se" if marks[mark]]
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join([*names[:-1], "$A", names[-1]]), special_tokens=[(name, int(name[2:])) for name in names]
    )
    return inner.to_str()


def tiny(encoder: TextEncoderSpec, config: dict, pad: int) -> TextEncoderSpec:
    assert encoder.pad_token_id in (None, pad)  # None: the end token, which must be the file's too
    return replace(encoder, config=config)


def prompt_encoder(file, case: str) -> PromptEncoder:
    """A backbone's recipe from the table, with the file's networks in it."""
    names, text = ENCODERS[backbone(case)], TEXTS[backbone(case)]
    pads = file.config["pad"]
    encoders = tuple(
        tiny(encoder, file.config[name], pads[name]) for name, encoder in zip(names, text.encoders, strict=True)
    )
    # the width that a T5 would give
    text = TextSpec(
        encoders, file.config["t5"]["d_model"] if text.min_width else 0, text.zero_tokens, text.zero_negative
    )
    made, read = [], []
    for name, encoder in zip(names, encoders, strict=True):
        weights = file.weights(name)
        if encoder.kind == "clip":  # the file's CLIPs have a projection in every role
            weights = {key: tensor for key, tensor in weights.items() if key != "text_projection.weight"}
        made.append(build_encoder(encoder).eval().requires_grad_(False))
        assert made[-1].state_dict().keys() == from_official(weights).keys()
        made[-1].load_state_dict(weights)  # strict
        table = file.config["table_t5" if encoder.kind == "t5" else "table_clip"]
        read.append(Tokenizer.for_encoder(table_tokenizer(table, encoder.kind != "t5"), encoder))
        empty = read[-1].encode([""])
        assert empty.input_ids[0, -1] == pads[name]
    return PromptEncoder(text, read, made)


def encode(file, case: str, drop_padding: bool) -> EncodedPrompts:
    negative = file.config["negative"]
    if not case.endswith("_explicit_negative"):
        negative = negative or None  # what an empty text means depends on the backbone
    return prompt_encoder(file, case).encode([file.config["prompt"], negative], drop_padding)


def test_every_case_is_tested(golden):
    """A case that this file does not know would pass unseen."""
    assert {backbone(case) for case in golden("text_encoding").cases} <= ENCODERS.keys()


@pytest.mark.parametrize("case", [*ENCODERS, "sdxl_explicit_negative"])
def test_text_features(case, golden, assert_close):
    file = golden("text_encoding")
    if case not in file.cases:
        pytest.skip(f"the file has no case {case}")
    out = file.out(case)
    features, warnings, unread = encode(file, case, drop_padding=False)
    assert warnings == ((), ()) and unread == (False, False)
    compared = {name for name in out if not name.startswith("ids_")}
    for row, prefix in enumerate(("", "negative_")):
        assert_close(features.embeddings[row : row + 1], out[f"{prefix}prompt_embeds"], f"{prefix}prompt_embeds")
        compared.remove(f"{prefix}prompt_embeds")
        if features.pooled.shape[1]:
            name = f"{prefix}pooled_prompt_embeds"
            assert_close(features.pooled[row : row + 1], out[name], name)
            compared.remove(name)
        if case in MASKED:
            name = f"{prefix}prompt_attention_mask"
            assert_close(features.mask[row : row + 1].to(out[name].dtype), out[name], name)
            compared.remove(name)
        else:
            assert features.mask.all()
    assert not compared


@pytest.mark.parametrize("case", [*ENCODERS, "sdxl_explicit_negative"])
def test_tokens(case, golden):
    """What the reference's encoders were fed: the padded ids of the prompt, then of the negative prompt."""
    file = golden("text_encoding")
    if case not in file.cases:
        pytest.skip(f"the file has no case {case}")
    encoder = prompt_encoder(file, case)
    for name, tokenizer in zip(ENCODERS[backbone(case)], encoder.tokenizers, strict=True):
        fed = {key: ids for key, ids in file.out(case).items() if key.startswith(f"ids_{name}_")}
        fed = [ids for ids in fed.values() if ids.shape[1] == tokenizer.max_tokens]
        prompts = [file.config["prompt"], file.config["negative"]][: len(fed)]  # SDXL does not encode the negative one
        assert fed and torch.equal(tokenizer.encode(prompts).input_ids, torch.cat(fed))


@pytest.mark.parametrize("case", MASKED)
def test_dropping_masked_tokens_changes_nothing(case, golden, assert_close):
    file = golden("text_encoding")
    if case not in file.cases:
        pytest.skip(f"the file has no case {case}")
    out = file.out(case)
    features = encode(file, case, drop_padding=True).features
    masks = torch.cat([out["prompt_attention_mask"], out["negative_prompt_attention_mask"]]).bool()
    longest = int(masks.sum(dim=1).max())
    assert features.embeddings.shape[1] == longest < masks.shape[1]
    assert torch.equal(features.mask, masks[:, :longest])
    for row, name in enumerate(("prompt_embeds", "negative_prompt_embeds")):
        kept = masks[row]
        assert_close(features.embeddings[row][features.mask[row]], out[name][0][kept], name)
