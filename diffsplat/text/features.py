"""Prompts -> the text that a denoiser reads: tokenizers and encoders of a backbone, joined as its `TextSpec` says.

Runs exported graphs as well as modules, and imports neither diffusers nor transformers.

Axes: R prompts, L tokens, D width of an embedding, P width of the pooled embedding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffsplat.backbones.text import TextSpec
from diffsplat.text.tokenizer import TokenBatch, Tokenizer
from diffsplat.text.unread import unread_warnings, weight_warnings

# input_ids [R, L] int64 (, mask [R, L] int64 for a masked one) -> embeddings [R, L, D] (, pooled [R, P])
Encoder = Callable[..., Tensor | tuple[Tensor, Tensor]]


class TextFeatures(NamedTuple):
    """Outputs of all text encoders of a backbone for R prompts."""

    embeddings: Tensor  # [R, L, D]
    mask: Tensor  # [R, L] bool, False on padding that the denoiser must not attend to
    pooled: Tensor  # [R, P]; P = 0 if the backbone has no pooled text


class EncodedPrompts(NamedTuple):
    """Text features of R prompts, and what their authors should know."""

    features: TextFeatures
    warnings: tuple[tuple[str, ...], ...]  # per prompt: words cut off, unknown words, weights
    unread: tuple[bool, ...]  # per prompt: it is not blank, and no encoder reads a token of it


class PromptEncoder:
    """The text encoders of one backbone.

    Args:
        spec: how outputs are joined.
        tokenizers: one for each encoder, in the order of the spec: `Tokenizer.for_encoder`.
        encoders: graphs, or modules of `build_encoder`.
    """

    def __init__(self, spec: TextSpec, tokenizers: Sequence[Tokenizer], encoders: Sequence[Encoder]) -> None:
        assert len(tokenizers) == len(encoders) == len(spec.encoders), "one tokenizer and one network for each encoder"
        self.spec = spec
        self.tokenizers = tuple(tokenizers)
        self.encoders = tuple(encoders)

    def encode(self, prompts: Sequence[str | None], drop_padding: bool = True) -> EncodedPrompts:
        """Text of R prompts.

        Args:
            prompts: None is an omitted negative prompt: zeros if the backbone was trained so (no encoder runs for it),
                else the empty text.
            drop_padding: leave out tokens that are masked in all rows. Nothing attends to them, so the embeddings of
                the others stay the same, and T5 computes 20 instead of 300 tokens for a prompt of 20.
        """
        texts = [None if text is None and self.spec.zero_negative else text or "" for text in prompts]
        given = [text for text in texts if text is not None]
        batches = [
            tokenizer.encode(given, drop_padding and encoder.masked)
            for tokenizer, encoder in zip(self.tokenizers, self.spec.encoders, strict=True)
        ]
        found = self._warnings(given, batches)
        warnings = tuple(found.get(text or "", ()) for text in texts)
        unread = {text for row, text in enumerate(given) if text.strip() and all(b.unread[row].is_all for b in batches)}
        if len(given) == len(texts):
            features = self._encode(batches)
        else:
            rows = torch.tensor([text is not None for text in texts])
            features = self._among_zeros(self._encode(batches) if given else None, rows)
        return EncodedPrompts(features, warnings, tuple(text in unread for text in texts))

    def _encode(self, batches: Sequence[TokenBatch]) -> TextFeatures:
        side_by_side: list[Tensor] = []  # of CLIPs
        behind: list[Tensor] = []  # of T5
        pooled: list[Tensor] = []
        mask: list[Tensor] = []
        for encoder, run, batch in zip(self.spec.encoders, self.encoders, batches, strict=True):
            output = run(batch.input_ids, batch.mask.long()) if encoder.masked else run(batch.input_ids)
            embeddings, *pools = output if isinstance(output, tuple) else (output,)
            (behind if encoder.kind == "t5" else side_by_side).append(embeddings)
            pooled += pools
            if encoder.kind == "t5" or len(side_by_side) == 1:  # CLIPs share their tokens
                mask.append(batch.mask if encoder.masked else torch.ones_like(batch.mask))
        parts = ([torch.cat(side_by_side, dim=-1)] if len(side_by_side) > 1 else side_by_side) + behind
        if self.spec.zero_tokens:
            zeros = parts[0].new_zeros(parts[0].shape[0], self.spec.zero_tokens, 0)
            parts.append(zeros)
            mask.append(torch.ones(zeros.shape[:2], dtype=torch.bool))
        width = max([self.spec.min_width, *(part.shape[-1] for part in parts)])
        parts = [part if part.shape[-1] == width else F.pad(part, (0, width - part.shape[-1])) for part in parts]
        embeddings = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        empty = embeddings.new_zeros(embeddings.shape[0], 0)
        return TextFeatures(embeddings, torch.cat(mask, 1), torch.cat(pooled, dim=-1) if pooled else empty)

    def _among_zeros(self, some: TextFeatures | None, rows: Tensor) -> TextFeatures:
        """`some` are the features of the chosen `rows` [R]; all other rows are zeros, every token of them read."""
        count, spec = len(rows), self.spec
        like = torch.empty(0) if some is None else some.embeddings
        embeddings = like.new_zeros(count, spec.tokens, spec.width)
        pooled = like.new_zeros(count, spec.pooled_width)
        if some is not None:
            embeddings[rows], pooled[rows] = some.embeddings, some.pooled
        return TextFeatures(embeddings, torch.ones(count, spec.tokens, dtype=torch.bool), pooled)

    def _warnings(self, texts: Sequence[str], batches: Sequence[TokenBatch]) -> dict[str, tuple[str, ...]]:
        """Text -> its warnings, each once: CLIPs of one backbone read the same tokens."""
        families = {"t5" if encoder.kind == "t5" else "clip" for encoder in self.spec.encoders}
        found: dict[str, dict[str, None]] = {
            text: dict.fromkeys(weight_warnings(text)) for text in texts if text.strip()
        }
        for encoder, tokenizer, batch in zip(self.spec.encoders, self.tokenizers, batches, strict=True):
            reader = "the text encoder" if len(families) == 1 else "T5" if encoder.kind == "t5" else "CLIP"
            for text, unread in zip(texts, batch.unread, strict=True):
                if text in found:
                    found[text].update(dict.fromkeys(unread_warnings(unread, reader, tokenizer.max_tokens)))
        return {text: tuple(warnings) for text, warnings in found.items()}


class Text(NamedTuple):
    """Text of R rows that may differ in length."""

    tokens: Tensor  # [R, L, D] embeddings, or [R, L, P] packed context
    kept: Tensor  # [R, L] bool, False on padding


def drop_masked_tokens(text_embeddings: Tensor, mask: Tensor) -> Text:
    """Leave out the tokens that no row keeps: T5's padding to 120 or 300 tokens, which no view may attend to.

    Args:
        text_embeddings: [R, L, D].
        mask: [R, L], nonzero = keep, as tokenizers give it.

    Raises:
        ValueError: a row keeps no token; a tokenizer's end token is always kept.
    """
    kept = mask != 0
    empty = (~kept.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"mask: rows {empty} keep no token, every row must keep 1 .. {mask.shape[1]}")
    used = kept.any(dim=0)
    return Text(text_embeddings[:, used], kept[:, used])


def kept_tokens_first(text_embeddings: Tensor, mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The tokens that count, in front of each row, and how many they are. On the host: it looks at the mask.

    Args:
        text_embeddings: [R, L, D].
        mask: [R, L], nonzero = keep.

    Returns:
        [R, L', D] with the length L' of the longest row, the others padded with zeros; the lengths.

    Raises:
        ValueError: as `drop_masked_tokens`.
    """
    text = drop_masked_tokens(text_embeddings, mask)
    rows = [tokens[kept] for tokens, kept in zip(*text, strict=True)]
    return pad_sequence(rows, batch_first=True), tuple(len(row) for row in rows)


def batch_contexts(contexts: Sequence[Tensor], tokens: int | None = None) -> Text:
    """Packed contexts [L_r, P] of different lengths as one batch; shorter ones are padded with zeros and masked.

    Args:
        contexts: on one device, where the batch is made without waiting for it.
        tokens: length L of the batch; by default that of the longest context.
    """
    lengths = [len(context) for context in contexts]
    tokens = max(lengths) if tokens is None else tokens
    padded = [F.pad(context, (0, 0, 0, tokens - len(context))) for context in contexts]
    kept = [F.pad(context.new_ones(len(context), dtype=torch.bool), (0, tokens - len(context))) for context in contexts]
    return Text(torch.stack(padded), torch.stack(kept))
