"""Prompt -> token ids, with the `tokenizers` library alone: serving does not need transformers for it.

Axes: R prompts, L tokens.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from diffsplat.backbones.text import TextEncoderSpec
from diffsplat.text.unread import Unread, find_unread

_START, _END, _UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"


class TokenBatch(NamedTuple):
    """Tokens of R prompts, and what they leave out of each."""

    input_ids: Tensor  # [R, L] int64, L = max_tokens
    mask: Tensor  # [R, L] bool, False on padding
    unread: list[Unread]


class Tokenizer:
    """A `tokenizer.json` of the `tokenizers` library: CLIP's byte pairs, T5's unigrams, or a word-level one of our own.

    The file's post-processor adds the start and end tokens. Their names in a prompt are plain text: a prompt cannot
    contain control tokens.

    Args:
        inner: what the file holds.
        max_tokens: length L of every row.
        pad_token_id: what fills up short prompts; by default the file's padding token, or else the end token (CLIP-L).
        start_token: whether a start token must be there; T5 has only an end token.
        lower_case: strip and lower-case prompts, whatever the file does.

    Raises:
        ValueError: the file does not add exactly these tokens.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        max_tokens: int,
        pad_token_id: int | None = None,
        start_token: bool = True,
        lower_case: bool = False,
    ) -> None:
        padding = inner.padding
        inner.no_padding()
        inner.no_truncation()  # both are done here, to know what was cut
        inner.encode_special_tokens = True  # as text
        empty = inner.encode("").ids
        if len(empty) != 1 + start_token:
            marks = "one start and one end token around" if start_token else "one end token after"
            raise ValueError(f"the tokenizer must put {marks} a prompt")
        self._inner = inner
        self._start_tokens = int(start_token)
        self.max_tokens = max_tokens
        self._lower_case = lower_case
        self._end = empty[-1]
        self._pad: int = self._end if padding is None else padding["pad_id"]
        if pad_token_id is not None:
            self._pad = pad_token_id
        self._is_word_level = isinstance(inner.model, models.WordLevel)
        self._unknown: int | None = None
        if isinstance(inner.model, models.WordLevel):
            self._unknown = inner.token_to_id(inner.model.unk_token)
        elif isinstance(inner.model, models.Unigram):
            hidden = inner.token_to_id(_hidden(_UNKNOWN))
            self._unknown = inner.token_to_id(_UNKNOWN) if hidden is None else hidden

    @classmethod
    def for_encoder(cls, source: str | os.PathLike[str], encoder: TextEncoderSpec) -> "Tokenizer":
        """The tokenizer of a text encoder, from the text of a `tokenizer.json` or from its path: see `from_json`."""
        inner = _read(source)
        return cls(inner, encoder.max_tokens, encoder.pad_token_id, encoder.kind != "t5", encoder.lower_case)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str], max_tokens: int | None = None) -> "Tokenizer":
        """Read a tokenizer with a start token from the text of a `tokenizer.json` or from its path.

        Args:
            source: the text (it starts with a brace) or a path.
            max_tokens: length L of every row; by default the file's own truncation length.

        Raises:
            ValueError: the file names no truncation length and `max_tokens` is not given, or it does not
                add exactly one start and one end token.
        """
        inner = _read(source)
        truncation = inner.truncation
        if max_tokens is None:
            if truncation is None:
                raise ValueError("max_tokens is open: the tokenizer names no truncation length")
            max_tokens = int(truncation["max_length"])
        return cls(inner, max_tokens)

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return self._inner.get_vocab_size()

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> row of the token embedding."""
        return self._inner.get_vocab()

    def encode(self, prompts: Sequence[str], drop_padding: bool = False) -> TokenBatch:
        """Tokens of prompts, each cut and padded to `max_tokens`; underscores count as spaces.

        With `drop_padding` rows are padded to the longest one only: for encoders that mask padding.
        """
        prompts = [prompt.replace("_", " ") for prompt in prompts]
        if self._lower_case:
            prompts = [prompt.lower().strip() for prompt in prompts]
        rows, unread = [], []
        fits = self.max_tokens - 1 - self._start_tokens
        for prompt, encoding in zip(prompts, self._inner.encode_batch(prompts), strict=True):
            ids = encoding.ids
            own = slice(self._start_tokens, -1)
            unknown = [token == self._unknown for token in ids[own]]
            unread.append(find_unread(prompt, encoding.offsets[own], unknown, fits, self._is_word_level))
            rows.append(ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], self._end])
        length = max(map(len, rows), default=0) if drop_padding else self.max_tokens
        padded = [ids + [self._pad] * (length - len(ids)) for ids in rows]
        input_ids = torch.tensor(padded, dtype=torch.int64).reshape(-1, length)
        lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        return TokenBatch(input_ids, torch.arange(length) < lengths[:, None], unread)


def _read(source: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """From the text of a `tokenizer.json`, which starts with a brace, or from its path."""
    is_text = isinstance(source, str) and source.lstrip().startswith("{")
    text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
    return tokenizers.Tokenizer.from_str(_hide_control_pieces(text))


def _hide_control_pieces(text: str) -> str:
    """Rename the control tokens among a unigram model's pieces, so that no text matches them; ids stay.

    T5 lists `</s>` among its pieces, with the best score of all. Byte pairs and words never produce their control
    tokens from text.
    """
    file = json.loads(text)
    if file["model"]["type"] != "Unigram":
        return text
    control = {token["content"] for token in file["added_tokens"] if token["special"]}
    vocabulary = file["model"]["vocab"]
    renamed = control & {piece for piece, _ in vocabulary}
    file["model"]["vocab"] = [[_hidden(piece) if piece in control else piece, score] for piece, score in vocabulary]
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] not in renamed]
    return json.dumps(file)


def _hidden(piece: str) -> str:
    """A name that no text has: words are split at spaces before pieces are looked up."""
    return f" {piece}"


def train_tokenizer(captions: Iterable[str], max_tokens: int) -> str:
    """Word-level tokenizer of every word in the captions, as the text of a `tokenizer.json`.

    Laid out as CLIP's: lower case, start and end token with the highest ids, padded with the end token; id 0 is <unk>.
    Punctuation is dropped. The same captions in any order give the same text.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("_", " "), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split(Regex(r"[^\w\s]+"), behavior="removed")]
    )
    words = {word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    ordered = [_UNKNOWN, *sorted(words), _START, _END]
    vocabulary = {word: index for index, word in enumerate(ordered)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([_UNKNOWN, _START, _END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(token, vocabulary[token]) for token in (_START, _END)]
    )
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(length=max_tokens, pad_id=vocabulary[_END], pad_token=_END)
    return tokenizer.to_str(pretty=True)
