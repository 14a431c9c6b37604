"""Text embeddings of a data set, computed once by frozen encoders.

    text.json                          spec, encoders' hashes, precision, numbers of objects and shards; sealed
    text-00000-of-00167.safetensors    embeddings [T, D] of tokens that count, tokens [N], pooled [N, P]; words
    text-null.safetensors              likewise, of the empty text alone (zeros where the backbone was trained so)

Padding that nothing attends to (PixArt's) is not stored: a caption of 20 tokens takes 20 rows instead of 300.

Axes: R objects asked for, N objects of a shard, L tokens, D width of an embedding, P width of the pooled embedding.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffsplat.backbones.text import TextSpec
from diffsplat.backends.precision import DTYPES
from diffsplat.graph import Precision
from diffsplat.integrity import check_seal, read_json, write_sealed
from diffsplat.text.features import TextFeatures

MANIFEST = "text.json"
NULL = "text-null.safetensors"
_FORMAT, _VERSION = "diffsplat-text", 1
_SHOWN = 3  # uids named in an error


@dataclass(frozen=True)
class StoreFacts:
    """What the embeddings of a store are made of; the same in every shard."""

    text: dict[str, Any]  # TextSpec as JSON
    encoders: dict[str, str]  # file below the encoders' folder -> sha256
    computed_in: Precision  # by the encoders
    stored_in: Precision
    objects: int
    shards: int

    def to_plain(self) -> dict[str, Any]:
        """Content of the manifest."""
        return {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}


class Caption(NamedTuple):
    """The text of one object."""

    uid: str
    text: str


def plain_text_spec(spec: TextSpec) -> dict[str, Any]:
    """A text spec as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))  # type: ignore[no-any-return]


def shard_name(index: int, count: int) -> str:
    """File of a shard, counted from 0."""
    return f"text-{index:05}-of-{count:05}.safetensors"


def write_facts(folder: Path, facts: StoreFacts) -> None:
    """Start a store, or check that `folder` holds one of the same facts.

    Raises:
        ValueError: it holds embeddings of other encoders, captions or precisions; the message names the difference.
    """
    path = folder / MANIFEST
    if path.exists():
        _check_same(path, read_facts(folder), facts)
        return
    if folder.exists() and any(path for path in folder.iterdir() if path.name[0] != "."):  # not what a kill has left
        raise ValueError(f"out = {folder}: exists and holds no {MANIFEST}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{MANIFEST}-{os.getpid()}")
    write_sealed(temporary, facts.to_plain())
    temporary.replace(path)


def read_facts(folder: Path) -> StoreFacts:
    """Facts of the store in `folder`. Raises ValueError naming the file."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{path}: missing; {folder} is no folder of text embeddings (`python -m training encode-text/…`)"
        )
    values = read_json(path)
    check_seal(path, values)
    if (values.get("format"), values.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"{path}: must be {_FORMAT!r} of version {_VERSION}, says {values.get('format')!r}")
    return StoreFacts(**{field.name: values[field.name] for field in dataclasses.fields(StoreFacts)})


def _check_same(path: Path, before: StoreFacts, now: StoreFacts) -> None:
    for field in dataclasses.fields(StoreFacts):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new:
            if isinstance(old, dict):
                name = next(key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
                old, new, field_name = old.get(name), new.get(name), f"{field.name}[{name!r}]"
            else:
                field_name = field.name
            raise ValueError(f"{path}: was written with {field_name} = {old}, this run has {new}; choose another `out`")


def write_shard(path: Path, captions: Sequence[Caption], features: TextFeatures, facts: StoreFacts) -> None:
    """Write one shard through a temporary file, so that it is whole or absent."""
    dtype = DTYPES[facts.stored_in]
    tensors = {
        "embeddings": features.embeddings[features.mask].to(dtype),  # [T, D], row after row
        "tokens": features.mask.sum(dim=1).to(torch.int32),
        "pooled": features.pooled.to(dtype),
    }
    words = {"uids": [caption.uid for caption in captions], "captions": [caption.text for caption in captions]}
    metadata = {"facts": json.dumps(facts.to_plain()), **{name: json.dumps(value) for name, value in words.items()}}
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Shard:
    """One file of a store, memory mapped; checked against the store's facts when opened."""

    def __init__(self, path: Path, facts: StoreFacts) -> None:
        """Raises ValueError, which names the file, if it is missing, truncated, or belongs to another store."""
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path}: missing; run encode-text with the same options again to write what is left")
        try:
            self._file = safe_open(path, "pt")  # checks that the file has its full length
            self._file.__enter__()
            metadata = self._file.metadata()
            tokens = self._file.get_tensor("tokens").tolist()
            stored = json.loads(metadata["facts"])
            self.captions = [
                Caption(*pair)
                for pair in zip(json.loads(metadata["uids"]), json.loads(metadata["captions"]), strict=True)
            ]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: truncated or no shard of text embeddings: {error}") from None
        if stored != facts.to_plain():
            raise ValueError(f"{path}: belongs to another store than {MANIFEST} beside it")
        self.starts = [0]
        for count in tokens:
            self.starts.append(self.starts[-1] + count)
        shape = self._file.get_slice("embeddings").get_shape()
        if len(tokens) != len(self.captions) or shape[0] != self.starts[-1]:
            raise ValueError(f"{path}: has {shape[0]} tokens of {len(tokens)} objects, its lists say otherwise")

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """Embeddings [L, D] and pooled embedding [P] of one object, float32."""
        embeddings = self._file.get_slice("embeddings")[self.starts[index] : self.starts[index + 1]]
        pooled = self._file.get_slice("pooled")[index : index + 1]
        return embeddings.float(), pooled[0].float()


class TextStore:
    """Reads the embeddings of a folder that `encode-text` has finished.

    Args:
        folder: Of the store.
        text: The text of the backbone to train; the store must be of the same.

    Raises:
        ValueError: a file is missing or damaged, or the store is of another backbone's text; the message names it.
    """

    def __init__(self, folder: Path, text: TextSpec) -> None:
        self.folder = folder
        self.facts = read_facts(folder)
        wanted = plain_text_spec(text)
        for name, value in wanted.items():
            if self.facts.text.get(name) != value:
                raise ValueError(
                    f"{folder / MANIFEST}: embeddings of other text encoders than the backbone's: {name} differs"
                )
        null = Shard(folder / NULL, self.facts)
        self._shards = [
            Shard(folder / shard_name(index, self.facts.shards), self.facts) for index in range(self.facts.shards)
        ]
        self._null = null.row(0)
        self._places = {
            caption.uid: (shard, row) for shard in self._shards for row, caption in enumerate(shard.captions)
        }

    def __len__(self) -> int:
        return len(self._places)

    @property
    def identity(self) -> dict[str, Any]:
        """What the embeddings are, for the lineage of a run: encoders' hashes and precisions."""
        facts = self.facts
        return {"encoders": facts.encoders, "computed_in": facts.computed_in, "stored_in": facts.stored_in}

    def check(self, captions: Mapping[str, str] | Sequence[str]) -> None:
        """Check before training that every object has its embedding.

        Args:
            captions: uids, or uid -> caption, which must then be the one that was encoded.

        Raises:
            ValueError: says how many lack one, and names some.
        """
        missing = [uid for uid in captions if uid not in self._places]
        if missing:
            raise ValueError(
                f"{self.folder}: no text embedding of {len(missing)} of {len(captions)} objects, "
                f"such as {', '.join(map(repr, missing[:_SHOWN]))}; run encode-text on this data"
            )
        if isinstance(captions, Mapping):
            changed = [uid for uid, caption in captions.items() if self.caption(uid) != caption]
            if changed:
                raise ValueError(
                    f"{self.folder}: {len(changed)} of {len(captions)} objects had another caption when encoded: "
                    f"{changed[0]!r} had {self.caption(changed[0])!r}, now has {captions[changed[0]]!r}"
                )

    def caption(self, uid: str) -> str:
        """The caption of an object when it was encoded. Raises ValueError naming an unknown uid."""
        shard, row = self._place(uid)
        return shard.captions[row].text

    def features(self, uids: Sequence[str], dropped: Tensor) -> TextFeatures:
        """Text of R objects, as serving's `PromptEncoder` gives it.

        Args:
            uids: R of them.
            dropped: [R] bool; these get the null text, as the unconditional branch of guidance does.

        Returns:
            float32 on the CPU; L is the length of the longest row, shorter ones are masked at their end.

        Raises:
            ValueError: names a uid that the store does not hold.
        """
        assert dropped.shape == (len(uids),), f"dropped {tuple(dropped.shape)}, {len(uids)} uids"
        rows = []
        for uid, is_dropped in zip(uids, dropped.tolist(), strict=True):
            shard, row = self._place(uid)  # a dropped object must be known too
            rows.append(self._null if is_dropped else shard.row(row))
        lengths = torch.tensor([len(embeddings) for embeddings, _ in rows])
        embeddings = pad_sequence([embeddings for embeddings, _ in rows], batch_first=True)
        mask = torch.arange(embeddings.shape[1]) < lengths[:, None]
        return TextFeatures(embeddings, mask, torch.stack([pooled for _, pooled in rows]))

    def _place(self, uid: str) -> tuple[Shard, int]:
        if uid not in self._places:
            raise ValueError(f"{self.folder}: has no text embedding of the object {uid!r}, only of {len(self)} others")
        return self._places[uid]
