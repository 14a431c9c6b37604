"""Check that a checkpoint fits a spec: keys, shapes, and configs. No weights are read."""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.backbones.spec import MASK_CHANNELS, PLUCKER_CHANNELS
from diffsplat.denoisers.graph_inputs import FAMILIES
from diffsplat.denoisers.view_inputs import stock_config
from diffsplat.integrity import read_json
from export.importing.layout import SourceError

SHOWN = 20  # keys named for each kind of problem
FLOATS = ("F64", "F32", "F16", "BF16")
Shape = tuple[int, ...]

# ignored: the reference overrides them when it loads a checkpoint, and here the shapes of the weights decide
_OPEN_KEYS = {"self", "sample_size", "in_channels", "out_channels", "dropout", "conditioning_embedding_out_channels"}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str  # safetensors' name
    shape: Shape
    begin: int  # bytes from the start of the file
    end: int


@dataclass(frozen=True)
class KeyReport:
    """Differences between the keys of a checkpoint and of a network."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()  # "KEY is SHAPE, not SHAPE"

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def lines(self) -> list[str]:
        """One line for each kind of problem, with the number of keys and the first of them."""
        lines = []
        for title, entries in zip(("missing", "unexpected", "mis-shaped"), self._kinds(), strict=True):
            if entries:
                more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
                lines.append(f"{title} ({len(entries)}): {', '.join(entries[:SHOWN])}{more}")
        return lines

    def _kinds(self) -> tuple[tuple[str, ...], ...]:
        return self.missing, self.unexpected, self.misshaped


def compare_keys(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> KeyReport:
    """Compare the tensors of a checkpoint with those of a network, both name -> shape."""
    common = (name for name in expected if name in found)
    return KeyReport(
        tuple(name for name in expected if name not in found),
        tuple(name for name in found if name not in expected),
        tuple(
            f"{name} is {list(found[name])}, not {list(expected[name])}"
            for name in common
            if list(found[name]) != list(expected[name])
        ),
    )


def read_header(path: Path) -> list[SourceTensor]:
    """Tensors of a safetensors file, in file order.

    Raises:
        SourceError: the file is truncated, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):  # checks header and size without reading tensors
            pass
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
    except (OSError, ValueError, SafetensorError) as error:
        raise SourceError(f"{path}: truncated, damaged or not a safetensors file ({error})") from None
    tensors = [
        SourceTensor(name, entry["dtype"], tuple(entry["shape"]), *(start + at for at in entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end))


def check_index(path: Path, holders: Mapping[str, str]) -> None:
    """Raise SourceError unless shards agree with their index; `holders` maps key -> file that has it."""
    try:
        weight_map = dict(read_json(path)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not a valid index ({type(error).__name__}: {error})") from None
    for key in sorted(weight_map.keys() | holders.keys()):
        if weight_map.get(key) != holders.get(key):
            said, found = weight_map.get(key, "no file"), holders.get(key, "no shard")
            raise SourceError(f"{path}: places {key} in {said}, but {found} holds it")


def check_denoiser_config(spec: BackboneSpec, path: Path) -> None:
    """Check that a denoiser's `config.json` describes the requested backbone.

    Raises:
        SourceError: it describes another backbone; the message names both.
    """
    config = _read_config(path)
    problems = _contradictions(spec, config)
    if problems:
        others = [name for name, other in BACKBONES.items() if not _contradictions(other, config)]
        described = " or ".join(others) or str(config.get("_class_name", "an unknown network"))
        raise SourceError(f"{path}: a checkpoint of {described}, but {spec.name} was asked for: {', '.join(problems)}")


def _contradictions(spec: BackboneSpec, config: Mapping[str, Any]) -> list[str]:
    import diffusers

    stock: Any = getattr(diffusers, FAMILIES[spec.family].official_class)
    theirs_class = str(config.get("_class_name", stock.__name__)).replace("MV2D", "2D")
    if theirs_class != stock.__name__:
        return [f"it is a {theirs_class}, not a {stock.__name__}"]
    problems = differing_arguments(stock, spec.denoiser, stock_config(config))
    text, image = spec.latent_channels + PLUCKER_CHANNELS, spec.latent_channels + PLUCKER_CHANNELS + MASK_CHANNELS
    channels = config.get("in_channels")
    if channels in (text, image) and (channels == image) != spec.is_image_conditioned:
        kinds = {text: "text", image: "image"}
        problems.append(f"it is {kinds[channels]} model (in_channels {channels}), not {kinds[text + image - channels]}")
    return problems


def differing_arguments(stock: Any, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Constructor arguments of a stock class in which two configs differ; omitted ones have their defaults."""
    problems = []
    for name, parameter in inspect.signature(stock.__init__).parameters.items():
        if name in _OPEN_KEYS:
            continue
        expected, found = (config.get(name, parameter.default) for config in (ours, theirs))
        if _plain(expected) != _plain(found):
            problems.append(f"{name} is {found!r}, not {expected!r}")
    return problems


def _plain(value: Any) -> Any:
    """Normalise equivalent values: null and false, and lists of one repeated value."""
    if isinstance(value, list | tuple):
        entries = list(value)
        if not entries:
            return False
        return _plain(entries[0]) if all(entry == entries[0] for entry in entries) else entries
    return False if value is None else value


def check_vae_config(spec: BackboneSpec, path: Path) -> None:
    """Check that the base image VAE scales its latents as in the spec, which shapes cannot show."""
    import diffusers

    ours = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    names: Collection[str] = ("scaling_factor", "shift_factor", "latent_channels", "norm_num_groups", "use_quant_conv")
    defaults = inspect.signature(diffusers.AutoencoderKL.__init__).parameters
    config = _read_config(path)
    problems = []
    for name in names:
        expected, found = (values.get(name, defaults[name].default) for values in (ours, config))
        if (expected or 0) != (found or 0):
            problems.append(f"{name} is {found!r}, not {expected!r}")
    if problems:
        raise SourceError(f"{path}: not the image VAE of {spec.name}: {', '.join(problems)}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise SourceError(str(error)) from None
