"""Official tokenizers: folders of the hub -> the text of a `tokenizer.json`, the one form that `Tokenizer` reads.

tokenizer/       tokenizer.json | vocab.json merges.txt (CLIP) | spiece.model (T5)
tokenizer_2/  tokenizer_3/        likewise
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from diffsplat.backbones.text import EncoderKind

_UNIGRAM = 1  # sentencepiece's TrainerSpec.ModelType
_T5_END = "</s>"
_T5_SENTINELS = [f"<extra_id_{index}>" for index in reversed(range(100))]  # numbered after the file's own pieces


def official_tokenizer_json(folder: str | os.PathLike[str], kind: EncoderKind) -> str:
    """The text of a `tokenizer.json` for an official folder, which may contain only older formats.

    Raises:
        ValueError: files are missing or damaged; the message names them.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").read_text(encoding="utf-8-sig")
    needed = ("spiece.model",) if kind == "t5" else ("vocab.json", "merges.txt")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: must hold tokenizer.json or {' and '.join(needed)}, lacks {', '.join(missing)}")
    if kind == "t5":
        return _t5_tokenizer(folder / "spiece.model").to_str(pretty=True)
    from transformers import CLIPTokenizer  # heavy

    clip: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return clip.backend_tokenizer.to_str(pretty=True)


def _t5_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """T5's unigram tokenizer as in its own `tokenizer.json`: character map, words with a leading bar, `</s>`."""
    try:
        pieces = _read_sentencepiece(path.read_bytes())
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ValueError(f"{path}: not a sentencepiece model: {error}") from None
    names = [name for name, _ in pieces.vocabulary]
    if pieces.model_type != _UNIGRAM or _T5_END not in names:
        raise ValueError(f"{path}: must be a unigram model with the piece {_T5_END}")
    vocabulary = pieces.vocabulary + [(name, 0.0) for name in _T5_SENTINELS if name not in names]
    inner = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unknown_id, byte_fallback=False))
    if pieces.character_map:
        inner.normalizer = normalizers.Precompiled(pieces.character_map)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    inner.add_special_tokens([*(name for name in names[:3] if name.startswith("<")), *_T5_SENTINELS])
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {_T5_END}", special_tokens=[(_T5_END, names.index(_T5_END))]
    )
    return inner


class _Sentencepiece(NamedTuple):
    vocabulary: list[tuple[str, float]]  # piece, score
    model_type: int
    unknown_id: int
    character_map: bytes


def _read_sentencepiece(data: bytes) -> _Sentencepiece:
    """The parts of a ModelProto that a tokenizer needs: its pieces and a few fields of its two specs."""
    vocabulary, model_type, unknown_id, character_map = [], _UNIGRAM, 0, b""
    for number, message in _fields(data):
        if number == 1:  # SentencePiece
            piece = dict(_fields(message))
            vocabulary.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
        elif number == 2:  # TrainerSpec
            trainer = dict(_fields(message))
            model_type, unknown_id = trainer.get(3, _UNIGRAM), trainer.get(40, 0)
        elif number == 3:  # NormalizerSpec
            character_map = dict(_fields(message)).get(2, b"")
    return _Sentencepiece(vocabulary, model_type, unknown_id, character_map)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int for numbers, bytes for strings, messages and fixed widths."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[wire]
        if at + length > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint's value and the position after it."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1
