"""Tokenizer and text encoder: CLIP's layout, our word-level vocabulary, official state dicts, export."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextModel

from diffsplat.backbones import PICO, TextEncoderSpec
from diffsplat.text.encoders import TextEncoder, build_encoder
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer
from diffsplat.text.unread import Unread

CAPTIONS = ["a red cube", "two Blue_spheres, stacked.", "A small green cone"]
WORDS = ["<unk>", "a", "blue", "cone", "cube", "green", "red", "small", "spheres", "stacked", "two"]
START, END = 11, 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(train_tokenizer(CAPTIONS, max_tokens=8))


def spec_with_vocabulary(size: int) -> TextEncoderSpec:
    (spec,) = PICO.text.encoders
    return replace(spec, config={**spec.config, "vocab_size": size})


def encoder(size: int = 13) -> TextEncoder:
    torch.manual_seed(0)
    return build_encoder(spec_with_vocabulary(size)).eval().requires_grad_(False)


def test_trained_tokenizer(tokenizer):
    assert tokenizer.vocab_size == len(WORDS) + 2
    assert tokenizer.max_tokens == 8
    batch = tokenizer.encode(["A RED cube", "blue_spheres: two!", ""])
    expected = [["a", "red", "cube"], ["blue", "spheres", "two"], []]
    for ids, words in zip(batch.input_ids.tolist(), expected, strict=True):
        assert ids == [START, *(WORDS.index(word) for word in words), *[END] * (7 - len(words))]
    assert batch.input_ids.dtype == torch.int64
    assert batch.unread == [Unread("", (), False), Unread("", (), False), Unread("", (), True)]


def test_the_same_captions_give_the_same_tokenizer():
    assert train_tokenizer(CAPTIONS, 8) == train_tokenizer(reversed(CAPTIONS), 8)


def test_unknown_words_are_named(tokenizer):
    batch = tokenizer.encode(["a Zebra on a red cube with a zebra and a Zebra", "a red cube"])
    assert batch.unread[0] == Unread("with a zebra and a Zebra", ("Zebra", "on"), False)  # words after the cut: unread
    assert batch.unread[1] == Unread("", (), False)
    assert batch.input_ids[0].tolist() == [START, 1, 0, 0, 1, 6, 4, END]


def test_a_prompt_that_just_fits_is_not_cut(tokenizer):
    batch = tokenizer.encode(["red " * 6, "red " * 7])
    assert [unread.cut for unread in batch.unread] == ["", "red"]
    assert torch.equal(batch.input_ids[0], batch.input_ids[1])


def test_no_prompts(tokenizer):
    assert tokenizer.encode([]).input_ids.shape == (0, 8)


def test_a_tokenizer_is_read_from_a_path(tokenizer, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(CAPTIONS, 8))
    ids = tokenizer.encode(CAPTIONS).input_ids
    for source in (path, str(path)):
        assert torch.equal(Tokenizer.from_json(source).encode(CAPTIONS).input_ids, ids)


def clip_tokenizer() -> tokenizers.Tokenizer:
    """Laid out as the official CLIP-L file: lower-casing byte pairs with word ends, no truncation or padding."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("r", "e"), ("re", "d</w>")], unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    inner.post_processor = processors.RobertaProcessing(("<|endoftext|>", end), ("<|startoftext|>", start))
    return inner


def test_byte_pair_tokenizer_of_clip():
    text = clip_tokenizer().to_str()
    batch = Tokenizer.from_json(text, max_tokens=6).encode(["Red_ox", "red red red red red"])
    start, end, red = 54, 55, 53
    assert batch.input_ids.tolist() == [[start, red, 14, 26 + 23, end, end], [start, red, red, red, red, end]]
    assert batch.unread == [Unread("", (), False), Unread("red", (), False)]  # byte pairs know every word
    with pytest.raises(ValueError, match="max_tokens is open"):
        Tokenizer.from_json(text)


def test_a_tokenizer_without_start_and_end_is_refused():
    inner = clip_tokenizer()
    inner.post_processor = processors.Sequence([])
    with pytest.raises(ValueError, match="one start and one end token"):
        Tokenizer.from_json(inner.to_str(), max_tokens=6)


def test_encoder_equals_transformers(tokenizer):
    """Ours leaves out transformers' mask and pooling code, not a number of the hidden state."""
    model = encoder()
    ids = tokenizer.encode(["a red cube", ""]).input_ids
    embeddings = model(ids)
    assert embeddings.shape == (2, 8, 96)
    assert (embeddings - model.text_model(ids).last_hidden_state).abs().max() <= 1e-5 * embeddings.abs().max()


def test_encoder_is_causal_and_reads_padding(tokenizer):
    model = encoder()
    ids = tokenizer.encode(["a red cube", "a red cone"]).input_ids
    first, second = model(ids)
    assert torch.equal(first[:3], second[:3])
    assert ((first[3:] - second[3:]).abs().amax(dim=1) > 1e-4).all()  # the padding behind the word sees it


def test_official_names(tokenizer):
    """Old files have `text_model.` and position ids, those of transformers 5 neither; ours are the official names."""
    model = encoder()
    own = model.state_dict()
    assert all(name.startswith("text_model.") for name in own)
    new_style = {name.removeprefix("text_model."): tensor for name, tensor in own.items()}
    assert set(new_style) == set(CLIPTextModel(model.text_model.config).state_dict())
    old_style = {**own, "text_model.embeddings.position_ids": torch.arange(16)[None]}
    ids = tokenizer.encode(CAPTIONS).input_ids
    for state in (own, old_style, new_style):
        torch.manual_seed(1)
        other = build_encoder(spec_with_vocabulary(13)).eval()
        other.load_state_dict(state)  # strict
        assert torch.equal(other(ids), model(ids))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**own, "text_projection.weight": torch.zeros(1)})


def test_open_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        build_encoder(PICO.text.encoders[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_onnx_graph_takes_any_number_of_prompts(tokenizer, tmp_path: Path):
    model, path = encoder(), str(tmp_path / "text.onnx")
    ids = tokenizer.encode(CAPTIONS).input_ids
    torch.onnx.export(model, (ids[:2],), path, dynamo=False, input_names=["ids"], dynamic_axes={"ids": {0: "rows"}})
    session = onnxruntime.InferenceSession(path)
    for rows in (ids[:1], ids):
        embeddings = torch.from_numpy(session.run(None, {"ids": rows.numpy()})[0])
        assert (embeddings - model(rows)).abs().max() <= 1e-5 * embeddings.abs().max()
