"""Text embeddings of a data set, one preset per backbone of the published script; `sd35l` says why it is refused."""

from pathlib import Path

from training.config.encode_text import EncodeTextConfig

# the published option -> our backbone
BACKBONES = {
    "sd15": "sd15",
    "sd21": "sd21",
    "sdxl": "sdxl",
    "paa": "pixart_alpha",
    "pas": "pixart_sigma",
    "sd3m": "sd3",
    "sd35m": "sd35",
    "sd35l": "sd35l",
}
ENCODE_TEXT = {
    f"encode-text/{option}": EncodeTextConfig(
        preset=f"encode-text/{option}", backbone=backbone, out=Path(f"runs/text/{option}")
    )
    for option, backbone in BACKBONES.items()
}
