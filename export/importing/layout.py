"""Locate the parts of a published model by file names alone, so that folders and listings of the hub work alike.

    <tag>/checkpoints/<iteration>/          of DiffSplat
        unet_ema/{config.json, diffusion_pytorch_model*.safetensors}      denoiser; of transformers in transformer_ema
        controlnet/{config.json, diffusion_pytorch_model.safetensors}     ControlNet, without EMA
        model.safetensors                                                 GSVAE, GSRecon, ElevEst
    text_encoder*/{config.json, model*.safetensors}  tokenizer*/  vae/    of the base model

Weights may be sharded with an index, and those of a base model may have an fp16 variant.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.bundle import TOKENIZER
from diffsplat.denoisers.graph_inputs import FAMILIES
from export.common import ExportError

REPOSITORY = "chenguolin/DiffSplat"
NEWEST = -1  # iteration
_CONTROLNET = "controlnet_"  # networks, one for every type

_SD, _SDXL, _SD3 = (f"gsvae_gobj265k_{latents}" for latents in ("sd", "sdxl_fp16", "sd3"))
# backbone -> base model on the hub, tag of the GSVAE, start of the denoiser's tag if one was published
PUBLISHED: Mapping[str, tuple[str, str, str | None]] = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", _SD, "gsdiff_gobj83k_sd15"),
    "sd21": ("stabilityai/stable-diffusion-2-1", _SD, None),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", _SDXL, None),
    "pixart_alpha": ("PixArt-alpha/PixArt-XL-2-512x512", _SD, None),
    "pixart_sigma": ("PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", _SDXL, "gsdiff_gobj83k_pas_fp16"),
    "sd3": ("stabilityai/stable-diffusion-3-medium-diffusers", _SD3, None),
    "sd35": ("stabilityai/stable-diffusion-3.5-medium", _SD3, "gsdiff_gobj83k_sd35m"),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SourceError(ExportError):
    """A checkpoint is incomplete, damaged, or of another backbone than requested; the message names file and keys."""


@dataclass(frozen=True)
class WeightFiles:
    """Files of one network's weights."""

    origin: Literal["checkpoint", "base"]
    files: tuple[str, ...]  # a single file, or all shards in order
    config: str | None = None  # config.json, if there is one
    index: str | None = None  # of the shards, if there is one

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that are read."""
        return (*self.files, *(name for name in (self.config, self.index) if name is not None))


def default_tags(backbone: str) -> dict[str, str]:
    """Network -> tag of its published checkpoint; unpublished networks are left out.

    Args:
        backbone: a key of BACKBONES, with the suffix `_image` for an image model.
    """
    text_backbone = backbone.removesuffix("_image")
    if text_backbone not in PUBLISHED:
        return {}
    _, gsvae, denoiser = PUBLISHED[text_backbone]
    tags = {"gsvae": gsvae, "gsrecon": "gsrecon_gobj265k_cnp_even4", "elevest": "elevest_gobj265k_b_C25"}
    if denoiser is not None:
        tags["denoiser"] = f"{denoiser}{'_image' * (text_backbone != backbone)}__render"
    if backbone == "sd15":
        tags |= {f"{_CONTROLNET}{kind}": f"{denoiser}__render__{kind}" for kind in ("depth", "normal", "canny")}
    return tags


def locate_checkpoints(
    spec: BackboneSpec,
    networks: Collection[str],
    names: Collection[str],
    label: str,
    tags: Mapping[str, str],
    iterations: Mapping[str, int],
) -> dict[str, WeightFiles]:
    """DiffSplat's own networks.

    Args:
        spec: the backbone asked for.
        networks: names of networks; those of the base model are skipped.
        names: all files of the source, with forward slashes.
        label: name of the source in errors.
        tags: network -> tag.
        iterations: network -> iteration; default: the newest.

    Raises:
        SourceError: a part is missing, or exists only as a pickle.
    """
    located = {}
    for network in networks:
        if _is_of_base_model(network):
            continue
        if network not in tags:
            raise SourceError(
                f"{network} of {spec.name}: no checkpoint was published; name the folder that holds one with "
                f"--tag {network}=TAG. {_tags_of(names, label)}"
            )
        folder = _iteration_folder(names, label, network, tags[network], iterations.get(network, NEWEST))
        if network == "denoiser" or network.startswith(_CONTROLNET):
            part = FAMILIES[spec.family].official_folder if network == "denoiser" else "controlnet"
            located[network] = weights_in(names, label, f"{folder}/{part}", "diffusion_pytorch_model", "checkpoint")
        else:
            located[network] = weights_in(names, label, folder, "model", "checkpoint")
    return located


def locate_base_parts(networks: Collection[str], names: Collection[str], label: str) -> dict[str, WeightFiles]:
    """Locate text encoders, preferring the fp16 variant as the reference does, and the image VAE."""
    located = {}
    for network in networks:
        if network.startswith(TEXT_ENCODER):
            located[network] = weights_in(names, label, network, "model", "base", variants=("fp16", ""))
        elif network == "image_encoder":
            located[network] = weights_in(names, label, "vae", "diffusion_pytorch_model", "base")
    return located


def locate_tokenizers(spec: BackboneSpec, names: Collection[str], label: str) -> dict[str, tuple[str, ...]]:
    """Folder of every tokenizer, in the order of the text encoders -> its files."""
    located = {}
    for folder in spec.text.numbered(TOKENIZER):
        located[folder] = tuple(sorted(name for name in names if name.rpartition("/")[0] == folder))
        if not located[folder]:
            raise SourceError(f"{label}: has no folder {folder}, which the text of {spec.name} needs")
    return located


def _is_of_base_model(network: str) -> bool:
    return network.startswith(TEXT_ENCODER) or network == "image_encoder"


def _iteration_folder(names: Collection[str], label: str, network: str, tag: str, iteration: int) -> str:
    start = f"{tag}/checkpoints/"
    below = {name[len(start) :].split("/")[0] for name in names if name.startswith(start)}
    found = {int(folder): folder for folder in below if folder.isdecimal()}
    if not found:
        what = "no iterations below" if any(name.startswith(f"{tag}/") for name in names) else "no folder"
        raise SourceError(f"{label}: has {what} {tag}, which holds the {network}. {_tags_of(names, label)}")
    wanted = max(found) if iteration == NEWEST else iteration
    if wanted not in found:
        there = ", ".join(map(str, sorted(found)))
        raise SourceError(f"{label}/{tag}: has no iteration {iteration}, only {there} (-1 is the newest)")
    return f"{start}{found[wanted]}"


def _tags_of(names: Collection[str], label: str) -> str:
    tags = sorted({name.split("/")[0] for name in names if re.match(r"[^/]+/checkpoints/", name)})
    return f"{label} has {', '.join(tags) or 'no folder of the layout TAG/checkpoints/ITERATION'}"


def weights_in(
    names: Collection[str],
    label: str,
    folder: str,
    stem: str,
    origin: Literal["checkpoint", "base"],
    variants: tuple[str, ...] = ("", "fp16"),
) -> WeightFiles:
    """Files of the first variant in a folder; shards must be complete.

    Raises:
        SourceError: there is none, a shard is missing, or there are only pickles.
    """
    here = {name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder}
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        index = f"{stem}.safetensors.index{dotted}.json"
        # the variant comes before the shard numbers in transformers' files, after them in older files of diffusers
        numbered = re.compile(
            rf"{re.escape(stem)}(?:{re.escape(dotted)}-(\d+)-of-(\d+)|-(\d+)-of-(\d+){re.escape(dotted)})\.safetensors"
        )
        shards = {name: match for name in here if (match := numbered.fullmatch(name))}
        single = f"{stem}{dotted}.safetensors"
        if single in here and shards:
            raise SourceError(f"{label}/{folder}: contains both {single} and {min(shards)}; remove the stale one")
        if single not in here and not shards:
            continue
        _check_complete({name: match.groups() for name, match in shards.items()}, f"{label}/{folder}")
        files = sorted(shards) or [single]
        return WeightFiles(
            origin,
            tuple(f"{folder}/{name}" for name in files),
            f"{folder}/config.json" if "config.json" in here else None,
            f"{folder}/{index}" if shards and index in here else None,
        )
    raise SourceError(_why_absent(names, label, folder, stem, here))


def _check_complete(shards: Mapping[str, tuple[str | None, ...]], folder: str) -> None:
    pairs = {tuple(int(number) for number in groups if number is not None) for groups in shards.values()}
    totals = {total for _, total in pairs}
    if len(totals) > 1:
        raise SourceError(f"{folder}: contains shards of different checkpoints: {', '.join(sorted(shards))}")
    missing = [number for number in range(1, max(totals, default=0) + 1) if number not in {first for first, _ in pairs}]
    if missing:
        raise SourceError(f"{folder}: lacks shard {', '.join(map(str, missing))} of {max(totals)}")


def _why_absent(names: Collection[str], label: str, folder: str, stem: str, here: Collection[str]) -> str:
    wanted = f"{label}/{folder}: has no {stem}.safetensors"
    pickles = sorted(name for name in here if name.endswith(_PICKLES))
    if pickles or "zero_to_fp32.py" in here:
        held = pickles[0] if pickles else "a DeepSpeed state"
        return (
            f"{wanted}, only {held}: a pickle, which can run arbitrary code when it is read and is refused. "
            "Convert it where you trust it: `zero_to_fp32.py --safe_serialization` for DeepSpeed, or "
            "`safetensors.torch.save_file(torch.load(..., weights_only=True), ...)`"
        )
    if here:
        return f"{wanted}, only {', '.join(sorted(here))}"
    parent = folder.rpartition("/")[0]
    start = f"{parent}/" if parent else ""
    beside = sorted({name[len(start) :].split("/")[0] for name in names if name.startswith(start)})
    return f"{wanted}: no such folder beside {', '.join(beside) or 'nothing'}"
