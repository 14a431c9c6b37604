"""Configuration of `encode-text`, which computes the embeddings of a data set's captions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from diffsplat.backbones import BACKBONES
from training.config.common import Data

# backbones offered by the reference's options although nobody published a network for them -> why we refuse them
UNPUBLISHED = {
    "sd35l": "nobody published a DiffSplat network or training configuration for SD3.5-large, so nothing could read "
    "its embeddings; its text encoders are those of SD3.5-medium: encode-text/sd35m"
}
_PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class EncodeTextConfig:
    """Captions -> embeddings of a backbone's frozen text encoders, in shards."""

    preset: str = ""
    backbone: str = "sd15"  # whose text encoders: a key of diffsplat.backbones.BACKBONES
    encoders: Path = Path("base")  # official base model (text_encoder*/, tokenizer*/), or a bundle of the backbone
    # whose captions: every object's plainest one, of those to train on and of those held out
    data: Data = field(default_factory=lambda: Data(source="data", objects=0))
    captions: Path | None = None  # lines `uid,caption` (Cap3D's file), instead of those of `data`
    out: Path = Path("runs/text")  # finished shards in it are kept: run the same command again after a stop
    batch_size: int = 32  # captions encoded together
    shard_objects: int = 500  # objects per file; 1.4 GB for SD3's three encoders in bf16
    shard: tuple[int, int] = (1, 1)  # (i, n): write every n-th file alone, from the i-th; for n processes on one `out`
    precision: Literal["bf16", "fp32"] = "bf16"  # of the encoders' weights; T5-XXL takes 9.5 GB in bf16
    stored: Literal["bf16", "fp32"] = "bf16"  # of the embeddings
    device: str = "cpu"
    threads: int = 2  # of torch, on the CPU

    def check(self) -> None:
        """Refuse what cannot be encoded, before a file is read.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        if self.backbone in UNPUBLISHED:
            raise ValueError(f"backbone = {self.backbone!r}: {UNPUBLISHED[self.backbone]}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone = {self.backbone!r} must be one of {', '.join(BACKBONES)}")
        for name in ("batch_size", "shard_objects", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("precision", "stored"):
            if getattr(self, name) not in _PRECISIONS:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(_PRECISIONS)}")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise ValueError(f"shard = {part} {parts}: the first must lie in [1, {parts}]")
