"""One bundle from whatever finished runs, bundles and base models hold, checked against each other."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.bundle import MANIFEST as BUNDLE_MANIFEST
from diffsplat.bundle import Bundle, assemble_bundle, check_replaceable, open_bundle, tokenizer_files
from diffsplat.networks import network_builders
from diffsplat.weights import holds_network, weight_files, write_weights
from training.checkpoint import FINISHED, git_revision, read_finished
from training.official import is_base_model, load_image_encoder, load_text
from training.parents import IDENTITIES, Parent, identity, latents_of, open_parent

TOKENIZER_FILE = "tokenizer.json"  # of a text encoder that is trained with its denoiser
_LINEAGE = (
    "preset", "seed", "data", "revision", "torch", "steps", "seconds", "metrics", "latent_scale", "latent_channels"
)  # fmt: skip


def bundle_runs(sources: Mapping[str, Path], target: Path) -> Bundle:
    """Write one bundle; of a network that several sources hold, the last one's is taken.

    Args:
        sources: Name in the bundle's lineage -> a finished run, a bundle, or a base model with text encoders.
        target: The bundle. An existing one is replaced, any other content is refused.

    Raises:
        ValueError: a source is none of these, a network is missing, or two were not trained on each other.
    """
    check_replaceable(target, BUNDLE_MANIFEST)
    holders: dict[str, Parent] = {}
    stages: dict[str, Any] = {}
    base: Path | None = None
    for name, path in sources.items():
        if is_base_model(path):
            base = path
        elif (path / BUNDLE_MANIFEST).is_file():
            bundle = open_bundle(path)
            held = [network for network in network_builders(bundle.spec) if holds_network(bundle.files, network)]
            holders |= {network: open_parent(path, network) for network in held}
            stages |= bundle.lineage.get("stages", {name: bundle.lineage})
        else:
            facts = read_finished(path)
            held = [file.removesuffix(".safetensors") for file in facts["files"] if file.endswith(".safetensors")]
            holders |= {network: Parent(path, facts) for network in held}
            stages[name] = {key: facts[key] for key in _LINEAGE if key in facts}
    check_parents(holders)
    spec = spec_of_networks(holders, with_images=base is not None)
    lineage = {
        "stages": stages,
        IDENTITIES: {network: identity(holder.facts) for network, holder in holders.items()},
        "revision": git_revision(),
        "seconds": round(sum(stage.get("seconds", 0.0) for stage in stages.values()), 1),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        staging = Path(temporary) / target.name
        staging.mkdir()
        _write_networks(staging, spec, holders, base)
        return assemble_bundle(staging, target, spec, lineage)


def check_parents(holders: Mapping[str, Parent]) -> None:
    """Refuse networks that were not trained on each other.

    Raises:
        ValueError: names the two folders.
    """
    for network in ("denoiser", "gsvae", "gsrecon"):
        if network not in holders:
            given = ", ".join(holders) or "none"
            raise ValueError(f"a bundle needs a {network}; the networks of these sources are: {given}")
    recon, vae, denoiser = holders["gsrecon"], holders["gsvae"], holders["denoiser"]
    # a reconstruction that was trained further still makes grids of the kind that the autoencoder knows
    known = [recon.facts["files"], *recon.facts.get("started_from", [])]
    if vae.facts["recon"] not in known:
        raise ValueError(f"{vae.path} was trained on another GSRecon than that of {recon.path}")
    if denoiser.facts["parents"]["vae"] != latents_of(vae.facts):
        raise ValueError(f"{denoiser.path} and {vae.path} must both be trained on the same latents")
    for name, holder in holders.items():
        if name.startswith("controlnet_"):
            if holder.facts["parents"]["denoiser"] != denoiser.facts["files"]:
                raise ValueError(f"{holder.path} was trained for another denoiser than that of {denoiser.path}")


def spec_of_networks(holders: Mapping[str, Parent], with_images: bool = False) -> BackboneSpec:
    """The denoiser's backbone with everything that lies beside it.

    Args:
        holders: Network -> where it comes from.
        with_images: whether a base model gives the image encoder that an image-conditioned denoiser needs.
    """
    spec = BackboneSpec.from_dict(holders["denoiser"].facts["spec"])
    vae = holders["gsvae"].facts
    gsvae = {**spec.gsvae, **vae["latent_scale"]}
    gsvae.pop("tiny_decoder", None)
    if vae.get("tiny_decoder"):
        gsvae["tiny_decoder"] = vae["tiny_decoder"]
    prefix = "controlnet_"
    controls: Any = tuple(name.removeprefix(prefix) for name in holders if name.startswith(prefix))
    estimator = holders.get("elevest")
    return dataclasses.replace(
        spec,
        gsvae=gsvae,
        controls=controls,
        image_encoder="image_encoder" in holders or (with_images and spec.image_encoder),
        elevest=None if estimator is None else estimator.facts.get("elevest") or estimator.facts["spec"]["elevest"],
    )


def _write_networks(staging: Path, spec: BackboneSpec, holders: Mapping[str, Parent], base: Path | None) -> None:
    """Weights and tokenizers under their names in a bundle; files of a bundle are copied as they are."""
    text = load_text(base, spec) if base is not None and TEXT_ENCODER not in holders else None
    numbered = spec.text.numbered(TEXT_ENCODER)
    if text is not None:
        for file, tokenizer in zip(tokenizer_files(spec), text.tokenizers, strict=True):
            (staging / file).write_text(tokenizer)
    for network, build in network_builders(spec).items():
        holder = holders.get(network)
        if holder is not None and holder.bundle is not None:
            for file in weight_files(holder.path, holder.bundle.files, network):
                shutil.copyfile(holder.path / file, staging / file)
        elif holder is not None:
            write_weights(staging, network, holder.load(network, build()), torch.float16)
        elif text is not None and network in numbered:
            write_weights(staging, network, text.encoders[numbered.index(network)], torch.float16)
        elif network == "image_encoder" and base is not None:
            write_weights(staging, network, load_image_encoder(base, spec), torch.float16)
        else:
            raise ValueError(f"no source holds the network {network}, which {spec.name} needs")
    if text is None:
        encoder = holders[TEXT_ENCODER]
        folder = encoder.path / FINISHED if encoder.bundle is None else encoder.path
        for file in tokenizer_files(spec):
            shutil.copyfile(folder / file, staging / file)
