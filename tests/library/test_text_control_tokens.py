"""Names of control tokens in a prompt are plain text, for every kind of tokenizer."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from diffsplat.backbones import PICO
from diffsplat.backbones.text import TextEncoderSpec
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def clip() -> tokenizers.Tokenizer:
    """Byte pairs laid out as CLIP's official file, with a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "re", "red</w>", START, END]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("r", "e"), ("re", "d</w>")], unk_token=END, end_of_word_suffix="</w>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""),
                "removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([START, END])
    inner.post_processor = processors.RobertaProcessing((END, vocabulary[END]), (START, vocabulary[START]))
    return inner


def t5() -> tokenizers.Tokenizer:
    """Unigrams laid out as T5's official file: its control tokens are pieces with the best score."""
    letters = sorted(set("</>_abcdeiknprstux0"))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -4.0) for letter in letters)]
    pieces += [("▁red", -3.0), ("<extra_id_0>", 0.0)]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    inner.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return inner


FILES = {
    "words": (train_tokenizer(["a red cube"], 16), PICO.text.encoders[0]),
    "clip": (clip().to_str(), TextEncoderSpec("clip", 77)),
    "t5": (t5().to_str(), TextEncoderSpec("t5", 77, pad_token_id=0, masked=True)),
}


@pytest.mark.parametrize("kind", FILES)
def test_control_tokens_in_a_prompt_are_text(kind: str):
    text, encoder = FILES[kind]
    control = {token["content"]: token["id"] for token in json.loads(text)["added_tokens"] if token["special"]}
    assert len(control) >= 2
    tokenizer = Tokenizer.for_encoder(text, encoder)
    unread_word = control.get("<unk>") if kind == "words" else None  # an unknown word is one <unk>
    for name in control:
        batch = tokenizer.encode([f"red {name} red", f"red{name}red", name], drop_padding=True)
        for row in range(3):
            ids = batch.input_ids[row][batch.mask[row]].tolist()
            inside = ids[encoder.kind != "t5" : -1]
            assert inside and not set(inside) & ({*control.values()} - {unread_word}), (name, ids)


def test_ordinary_text_keeps_its_t5_tokens():
    text, encoder = FILES["t5"]
    ids = Tokenizer.for_encoder(text, encoder).encode(["red dab ü"], drop_padding=True).input_ids[0].tolist()
    assert ids == t5().encode("red dab ü").ids
    assert 2 in ids  # ü is unknown
