"""`python -m training encode-text/...`: captions -> a `TextStore`, with the encoders and tokenizers that are served.

A stopped run is continued by the same command: shards are written whole or not at all, and those that are there with
the same captions are kept.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from diffsplat.backbones import BACKBONES
from diffsplat.text.features import PromptEncoder, TextFeatures
from training.config.encode_text import EncodeTextConfig
from training.data.captions_csv import read_captions
from training.data.record import BrokenRecord
from training.data.source import open_source, require
from training.report import with_time_left
from training.text_encoders import open_text_encoders
from training.text_store import (
    NULL,
    Caption,
    Shard,
    StoreFacts,
    TextStore,
    plain_text_spec,
    shard_name,
    write_facts,
    write_shard,
)  # fmt: skip


def run_encode_text(config: EncodeTextConfig) -> Path:
    """Write the shards that are missing in ``config.out``, which is returned.

    Raises:
        ValueError: a field is out of range, captions or encoders cannot be read, or `out` holds other embeddings.
    """
    config.check()
    torch.set_num_threads(config.threads)
    captions = _captions(config)
    text = open_text_encoders(config.encoders, BACKBONES[config.backbone], config.precision, config.device)
    count = math.ceil(len(captions) / config.shard_objects)
    facts = StoreFacts(
        plain_text_spec(text.spec), text.files, config.precision, config.stored, len(captions), count
    )  # fmt: skip
    write_facts(config.out, facts)
    if not _is_written(config.out / NULL, (Caption("", ""),), facts):
        write_shard(config.out / NULL, (Caption("", ""),), text.prompts.encode([None]).features, facts)
    part, parts = config.shard
    wanted = {
        config.out / shard_name(index, count): captions[
            index * config.shard_objects : (index + 1) * config.shard_objects
        ]
        for index in range(part - 1, count, parts)
    }
    left = {path: entries for path, entries in wanted.items() if not _is_written(path, entries, facts)}
    noticed = _encode(text.prompts, left, config, facts)
    console = Console()
    console.print(
        f"{config.out}: {len(captions)} captions in {count} shards, {len(left)} written now", highlight=False,
        soft_wrap=True,
    )  # fmt: skip
    for warning in noticed:
        console.print(warning, highlight=False, soft_wrap=True)
    if all((config.out / shard_name(index, count)).is_file() for index in range(count)):
        TextStore(config.out, text.spec)  # as training will open it
    return config.out


def _captions(config: EncodeTextConfig) -> list[Caption]:
    """What to encode: the lines of a file, or every object of the data.

    Raises:
        ValueError: objects have no captions; the message names some.
        BrokenRecord: an object cannot be read, and `data.skip_broken` is not set.
    """
    if config.captions is not None:
        return [Caption(uid, text) for uid, text in read_captions(config.captions).items()]
    captions: list[Caption] = []
    for validation in (False, True):
        source = open_source(config.data, BACKBONES[config.backbone].geometry, validation)
        require(source, frozenset({"caption"}), "encode-text", config.data.source)
        for index in range(len(source)):
            try:
                captions.append(Caption(source.uid(index), source.caption(index, None)))
            except BrokenRecord:
                if not config.data.skip_broken:
                    raise
    silent = [caption.uid for caption in captions if not caption.text.strip()]
    if silent:
        raise ValueError(
            f"data.source = {config.data.source!r}: {len(silent)} of {len(captions)} objects have no caption, such as "
            f"{', '.join(silent[:3])}; give captions with data.captions, or leave them out with data.ids"
        )
    return captions


def _encode(
    prompts: PromptEncoder, left: dict[Path, list[Caption]], config: EncodeTextConfig, facts: StoreFacts
) -> list[str]:
    """Write the given shards; returns what the author of the captions should know."""
    size = config.batch_size
    batches = [(path, start) for path, entries in left.items() for start in range(0, len(entries), size)]
    made: list[TextFeatures] = []
    cut = unread = 0
    for path, start in with_time_left(batches, f"text of {sum(map(len, left.values()))} captions"):
        entries = left[path]
        encoded = prompts.encode([caption.text for caption in entries[start : start + size]])
        made.append(encoded.features)
        cut += sum(map(bool, encoded.warnings))
        unread += sum(encoded.unread)
        if start + size >= len(entries):
            for left_by_a_kill in path.parent.glob(f".{path.name}-*"):  # no other process writes this shard
                left_by_a_kill.unlink()
            write_shard(path, entries, _joined(made), facts)
            made = []
    lines = [f"{cut} captions are not read to their end, or hold words that no encoder knows"] if cut else []
    return [*lines, *([f"{unread} captions hold no word that an encoder reads"] if unread else [])]


def _is_written(path: Path, captions: Sequence[Caption], facts: StoreFacts) -> bool:
    """Whether a shard is there, of the same captions. A truncated one is written again.

    Raises:
        ValueError: it is of other captions.
    """
    if not path.is_file():
        return False
    try:
        with Shard(path, facts) as shard:
            found = shard.captions
    except ValueError as error:
        Console().print(f"{error}; written again", highlight=False, soft_wrap=True)
        return False
    if found != list(captions):
        raise ValueError(f"{path}: holds embeddings of other captions; choose another `out`")
    return True


def _joined(parts: Sequence[TextFeatures]) -> TextFeatures:
    """Features of several batches as one; rows differ in length where padding was dropped."""
    longest = max(part.embeddings.shape[1] for part in parts)

    def padded(values: Tensor) -> Tensor:  # [R, L, ...] -> [R, longest, ...]
        return torch.cat([values, values.new_zeros(len(values), longest - values.shape[1], *values.shape[2:])], dim=1)

    return TextFeatures(
        torch.cat([padded(part.embeddings) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
        torch.cat([part.pooled for part in parts]),
    )
