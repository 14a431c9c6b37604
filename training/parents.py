"""What a stage builds on: the finished run of another stage, or a bundle, which holds several.

Whether two stages belong together is read from hashes: a stage notes the files of what it was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from diffsplat.bundle import MANIFEST as BUNDLE_MANIFEST
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.weights import holds_network, load_weights, weight_files
from training.checkpoint import CheckpointError, load_finished, read_finished

IDENTITIES = "identities"  # of the networks, in a bundle's lineage
_IDENTITY = ("files", "recon", "latents", "latent_channels", "started_from", "parents")


@dataclass(frozen=True)
class Parent:
    """A verified folder with the networks of a finished stage."""

    path: Path
    facts: dict[str, Any]  # of a run's `finished.json`; a bundle gives the same
    bundle: Bundle | None = None

    def load(self, network: str, module: nn.Module) -> nn.Module:
        """`module` with the weights of `network`, frozen and in evaluation mode.

        Raises:
            ValueError: they are missing or do not fit; the message names the file.
        """
        if self.bundle is None:
            return load_finished(self.path, network, module)
        load_weights(module, self.bundle.root, self.bundle.files, network)
        return module.eval().requires_grad_(False)


def open_parent(path: Path, network: str) -> Parent:
    """A finished run that trained `network`, or a bundle that holds it.

    Raises:
        CheckpointError: `path` is neither, lacks the network, or a file is missing or damaged; the message names it.
        BundleError: the bundle's manifest or a file of it is damaged.
    """
    if (path / BUNDLE_MANIFEST).is_file():
        return _of_bundle(open_bundle(path), network)
    facts = read_finished(path)
    if not holds_network(facts["files"], network):
        raise CheckpointError(f"{path}: its stage trained no {network}, only {', '.join(facts['files'])}")
    return Parent(path, facts)


def latents_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Files of the autoencoder whose encoder makes the latents: of its own run, or of the one it kept them from."""
    return facts.get("latents") or facts["files"]


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of a network's facts a bundle keeps in its lineage, so that it stays known as what it was trained on."""
    return {key: facts[key] for key in _IDENTITY if facts.get(key)}


def _of_bundle(bundle: Bundle, network: str) -> Parent:
    """The facts that the finished stage of a bundle's network has, or would have where the bundle keeps none."""
    if not holds_network(bundle.files, network):
        raise CheckpointError(f"{bundle.root}: the bundle holds no {network}")
    kept: Mapping[str, Any] = bundle.lineage.get(IDENTITIES, {})

    def files(name: str) -> dict[str, Any]:
        if name in kept:
            return kept[name]["files"]
        if not holds_network(bundle.files, name):
            return {}
        return {file: bundle.files[file] for file in weight_files(bundle.root, bundle.files, name)}

    facts: dict[str, Any] = {"files": files(network)}
    if network == "gsvae":
        config = bundle.spec.gsvae
        shift = config.get("shift_factor") or 0.0
        facts |= {
            "recon": files("gsrecon"),
            "latent_scale": {"scaling_factor": config["scaling_factor"], "shift_factor": shift},
            "tiny_decoder": config.get("tiny_decoder"),
        }
        for stage in bundle.lineage.get("stages", {}).values():
            if "latent_channels" in stage:
                facts["latent_channels"] = stage["latent_channels"]
    elif network != "gsrecon":
        latents = kept["gsvae"].get("latents", files("gsvae")) if "gsvae" in kept else files("gsvae")
        facts["parents"] = {"recon": files("gsrecon"), "vae": latents, "denoiser": files("denoiser")}
    return Parent(bundle.root, {**facts, **kept.get(network, {}), "spec": bundle.spec.to_dict()}, bundle)
