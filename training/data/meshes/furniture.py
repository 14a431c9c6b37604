"""The furniture of Debian's `sweethome3d-furniture`: catalogues of textured models with names, tags and licences.

A catalogue (.sh3f) is a zip file with a `PluginFurnitureCatalog.properties`, whose entries ``field#n=value`` describe
model n, and the models as OBJ files in folders of their own.
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CATALOGUES = Path("/usr/share/sweethome3d/furniture")
HELD_OUT_CATEGORY = "Lights"  # no model of it is trained on
HELD_OUT_SHARE = 10  # and one in this many of the others

_PROPERTIES = "PluginFurnitureCatalog.properties"
_ENTRY = re.compile(r"^[ \t]*(\w+)#(\d+)[ \t]*=[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_NOT_SAID = frozenset({"blend swap", "scpts", "haussmann", "kator legaz", "scopia", "reallusion"})  # where it is from
_ROOMS = frozenset({"Living room", "Kitchen", "Bedroom", "Bathroom", "Office"})


class FurnitureModel(NamedTuple):
    """One entry of a catalogue."""

    uid: str
    name: str
    tags: tuple[str, ...]
    category: str
    creator: str
    licence: str
    archive: Path
    member: str  # its OBJ file in the archive
    rotation: tuple[float, ...] | None  # 9 numbers
    size: tuple[float, float, float]  # width, height, depth in cm

    @property
    def held_out(self) -> bool:
        """Whether training never sees it."""
        return self.category == HELD_OUT_CATEGORY or zlib.crc32(self.uid.encode()) % HELD_OUT_SHARE == 0

    @property
    def public_domain(self) -> bool:
        """Whether its pictures may be shown without naming its author."""
        return self.licence == "Public domain"

    @property
    def captions(self) -> tuple[str, ...]:
        """The name; with its tags; with where it belongs."""
        name = self.name.lower()
        tags = [tag.lower() for tag in self.tags if tag.lower() not in _NOT_SAID and tag.lower() not in name]
        place = f"{name} for the {self.category.lower()}" if self.category in _ROOMS else ""
        return tuple(caption for caption in (name, ", ".join([name, *tags]) if tags else "", place) if caption)


def find_catalogues(folder: Path) -> list[Path]:
    """The catalogues of a folder.

    Raises:
        ValueError: there are none; the message says how to install them.
    """
    found = sorted(folder.glob("*.sh3f"))
    if not found:
        raise ValueError(
            f"catalogues = {folder} holds no .sh3f file; on Debian: apt-get install sweethome3d-furniture (120 MB), "
            "or apt-get download it, unpack it with dpkg -x, and name its folder usr/share/sweethome3d/furniture"
        )
    return found


def read_models(catalogues: Sequence[Path]) -> list[FurnitureModel]:
    """All models, by catalogue and number.

    Raises:
        ValueError: a catalogue cannot be read, or two models have one id.
    """
    models = [model for catalogue in catalogues for model in _read_catalogue(catalogue)]
    seen: dict[str, FurnitureModel] = {}
    for model in models:
        if model.uid in seen:
            raise ValueError(f"{model.archive} and {seen[model.uid].archive} both have a model {model.uid}")
        seen[model.uid] = model
    return models


def _read_catalogue(path: Path) -> list[FurnitureModel]:
    try:
        with zipfile.ZipFile(path) as archive:
            text = _unescaped(archive.read(_PROPERTIES).decode("latin-1"))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a furniture catalogue: {error}") from error
    stated = re.search(r"^license\s*=(.*)$", text, re.MULTILINE)
    licence = " ".join(stated[1].split()) if stated else "unknown"
    entries: dict[int, dict[str, str]] = {}
    for field, number, value in _ENTRY.findall(text):
        entries.setdefault(int(number), {})[field] = value
    return [_model(path, entry, licence) for _, entry in sorted(entries.items()) if "model" in entry]


def _model(path: Path, entry: dict[str, str], licence: str) -> FurnitureModel:
    try:
        return FurnitureModel(
            uid=re.sub(r"[^a-z0-9]+", "-", entry["id"].lower()).strip("-"),
            name=entry.get("name") or entry["id"].rpartition("#")[2],
            tags=tuple(tag.strip() for tag in entry.get("tags", "").split(",") if tag.strip()),
            category=entry["category"],
            creator=entry.get("creator", "unknown"),
            licence=entry.get("license", licence),
            archive=path,
            member=entry["model"].lstrip("/"),
            rotation=tuple(map(float, entry["modelRotation"].split())) if "modelRotation" in entry else None,
            size=(float(entry["width"]), float(entry["height"]), float(entry["depth"])),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: entry {entry.get('id', '')!r} of {_PROPERTIES}: {error!r}") from error


def _unescaped(text: str) -> str:
    """Java's escapes: a line that ends with a backslash goes on, and backslash u names a character."""
    joined = re.sub(r"\\\r?\n\s*", "", text)
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), joined)
