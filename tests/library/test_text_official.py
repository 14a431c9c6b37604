"""Official text encoders and tokenizers: tiny ones, written by transformers in the hub's layouts, read back by name."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from diffsplat.backbones.text import TextEncoderSpec
from diffsplat.text.encoders import build_encoder
from diffsplat.text.official_encoders import load_official_encoder
from diffsplat.text.official_names import from_official, to_transformers
from diffsplat.text.official_tokenizers import official_tokenizer_json
from diffsplat.text.tokenizer import Tokenizer
from tests.official import protobuf_field as message

MARKS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as in official config files: not the tokenizer's
CLIP: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
    "hidden_act": "gelu",
    "projection_dim": 10,
}
T5: dict[str, Any] = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "gated-gelu",
}
ENCODERS = {
    "clip": TextEncoderSpec("clip", 7, CLIP),
    "clip_projection": TextEncoderSpec("clip_projection", 7, CLIP),
    "t5": TextEncoderSpec("t5", 7, T5),
}
IDS = torch.tensor([[28, 3, 4, 5, 29, 29, 29], [28, 7, 29, 0, 0, 0, 0]])


def stock(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        return T5EncoderModel(T5Config(**T5)).eval().requires_grad_(False)
    model = CLIPTextModel if kind == "clip" else CLIPTextModelWithProjection
    return model(CLIPTextConfig(**CLIP, **MARKS)).eval().requires_grad_(False)


def saved(kind: str, folder: Path, **options: Any) -> nn.Module:
    model = stock(kind)
    if options.get("variant") == "fp16":
        model = model.half()
    model.save_pretrained(folder, **options)
    return model.float()


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def same(loaded: Any, model: Any) -> bool:
    with torch.no_grad():
        reference, result = model(IDS), loaded(IDS)
    pairs = [(result, reference.last_hidden_state)]
    if isinstance(result, tuple):
        pairs = [(result[0], reference.last_hidden_state), (result[1], reference.text_embeds)]
    return all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("kind", ENCODERS)
def test_names_there_and_back(kind: str):
    names = stock(kind).state_dict()
    ours = from_official(names)
    assert ours.keys() == build_encoder(ENCODERS[kind]).state_dict().keys()
    assert from_official(ours).keys() == ours.keys()
    back = to_transformers(ENCODERS[kind].kind, ours)
    assert back.keys() == names.keys()
    assert all(back[name] is tensor for name, tensor in names.items() if name != "encoder.embed_tokens.weight")
    stock(kind).load_state_dict(back)  # strict


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_shard_size": "3KB"}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "3KB"}],
    ids=["one file", "shards", "fp16", "fp16 shards"],
)
def test_layouts(kind: str, options: dict[str, Any], tmp_path: Path):
    model = saved(kind, tmp_path, **options)
    assert (len(list(tmp_path.glob("model*.safetensors"))) > 1) == ("max_shard_size" in options)
    loaded = load_official_encoder(tmp_path, ENCODERS[kind], options.get("variant"))
    assert not loaded.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    assert same(loaded, model)


@pytest.mark.parametrize("kind", ["clip", "clip_projection"])
def test_clip_files_of_older_libraries(kind: str, tmp_path: Path):
    """`text_model.` before every name, and the positions as a tensor."""
    model = saved(kind, tmp_path)

    def old(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        named = {
            name if name.startswith("text_") else f"text_model.{name}": tensor.clone() for name, tensor in state.items()
        }
        return {**named, "text_model.embeddings.position_ids": torch.arange(7)[None]}

    rewrite(tmp_path, old)
    loaded = load_official_encoder(tmp_path, ENCODERS[kind])
    assert same(loaded, model)
    # ours are the names of these files
    assert {*loaded.state_dict(), "text_model.embeddings.position_ids"} == load_file(
        tmp_path / "model.safetensors"
    ).keys()


def test_tied_embedding_of_t5(tmp_path: Path):
    model, tied = saved("t5", tmp_path), "encoder.embed_tokens.weight"
    rewrite(tmp_path, lambda state: {**state, tied: state["shared.weight"].clone()})
    assert same(load_official_encoder(tmp_path, ENCODERS["t5"]), model)
    rewrite(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if name != "shared.weight"})
    assert same(load_official_encoder(tmp_path, ENCODERS["t5"]), model)
    other = {**model.state_dict(), tied: model.state_dict()[tied] + 1}
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens\.weight: differs from"):
        from_official(other)
    rewrite(tmp_path, lambda state: {**state, "shared.weight": state[tied] + 1})
    with pytest.raises(ValueError, match=r"shared\.weight in model\.safetensors differs from shared\.weight"):
        load_official_encoder(tmp_path, ENCODERS["t5"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if "fc1.bias" not in k}, r"missing text_model\..*fc1\.bias"),
        (lambda state: {**state, "logit_scale": torch.ones(1)}, "unexpected logit_scale in model.safetensors"),
        (lambda state: {**state, "text_projection.weight": torch.ones(10, 16)}, "unexpected text_projection"),
        (
            lambda state: {**state, "final_layer_norm.bias": torch.ones(3)},
            r"final_layer_norm\.bias .* is \[3\], not \[16",
        ),
    ],
)
def test_loading_is_strict(change: Any, message: str, tmp_path: Path):
    saved("clip", tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_official_encoder(tmp_path, ENCODERS["clip"])


def test_files_that_are_not_there(tmp_path: Path):
    saved("clip", tmp_path, max_shard_size="3KB")
    with pytest.raises(ValueError, match=r"must hold model\.fp16\.safetensors .* has model-00001-of-"):
        load_official_encoder(tmp_path, ENCODERS["clip"], "fp16")
    shard = sorted(tmp_path.glob("model-00002-of-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name}: not readable"):
        load_official_encoder(tmp_path, ENCODERS["clip"])
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name}: not readable"):
        load_official_encoder(tmp_path, ENCODERS["clip"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not readable"):
        load_official_encoder(tmp_path, ENCODERS["clip"])


def test_what_shapes_do_not_show_is_compared(tmp_path: Path):
    saved("clip", tmp_path)
    other = replace(ENCODERS["clip"], config={**CLIP, "num_attention_heads": 4, "hidden_act": "quick_gelu"})
    message = r"another model: num_attention_heads is 2, not 4, hidden_act is 'gelu', not 'quick_gelu'"
    with pytest.raises(ValueError, match=message):
        load_official_encoder(tmp_path, other)


def test_clip_tokenizer_of_two_files(tmp_path: Path):
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    with pytest.raises(ValueError, match=r"lacks merges\.txt"):
        official_tokenizer_json(tmp_path, "clip")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    text = official_tokenizer_json(tmp_path, "clip")
    tokenizer = Tokenizer.for_encoder(text, TextEncoderSpec("clip", 8, pad_token_id=0))
    expected = ["<|startoftext|>", "red</w>", ",</w>", "a</w>", "o", "x</w>", "<|endoftext|>", "a"]
    assert [tokens[i] for i in tokenizer.encode(["Red,  A_ox"]).input_ids[0]] == expected
    (tmp_path / "tokenizer.json").write_text(text)  # goes before the others, as it is
    (tmp_path / "vocab.json").unlink()
    assert official_tokenizer_json(tmp_path, "clip") == text


def sentencepiece(*specs: bytes) -> bytes:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -3.0), ("▁cube", -3.0), ("s", -4.0)]
    return b"".join([message(1, message(1, text.encode()) + message(2, score)) for text, score in pieces] + [*specs])


def test_t5_tokenizer_of_a_sentencepiece_file(tmp_path: Path):
    identity = struct.pack("<I", 1024) + bytes(1024)  # a character map without an entry
    trainer = message(2, message(3, 1) + message(40, 2))
    normalizer = message(3, message(1, b"nmt_nfkc") + message(2, identity) + message(3, 1))
    (tmp_path / "spiece.model").write_bytes(sentencepiece(trainer, normalizer))
    text = official_tokenizer_json(tmp_path, "t5")
    inner = tokenizers.Tokenizer.from_str(text)
    assert inner.encode(" red  cubes").tokens == ["▁red", "▁cube", "s", "</s>"]
    assert inner.get_vocab_size() == 7 + 100  # T5's sentinels follow the pieces, the last one first
    assert inner.token_to_id("<extra_id_99>") == 7 and inner.token_to_id("<extra_id_0>") == 106
    assert json.loads(text)["normalizer"]["type"] == "Precompiled"
    tokenizer = Tokenizer.for_encoder(text, TextEncoderSpec("t5", 6, pad_token_id=0, masked=True, lower_case=True))
    batch = tokenizer.encode([" Red_cubes Z"])
    assert batch.input_ids.tolist() == [[4, 5, 6, 3, 2, 1]]
    assert [unread.unknown for unread in batch.unread] == [("z",)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a model", "not a sentencepiece model"),
        (sentencepiece()[:-3], "it ends within a field"),
        (sentencepiece(message(2, message(3, 2))), "must be a unigram model"),
    ],
)
def test_damaged_sentencepiece_files(data: bytes, reason: str, tmp_path: Path):
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(ValueError, match=f"spiece.model: {reason}" if "ends" not in reason else reason):
        official_tokenizer_json(tmp_path, "t5")
    with pytest.raises(ValueError, match=r"lacks vocab\.json, merges\.txt"):
        official_tokenizer_json(tmp_path, "clip")
