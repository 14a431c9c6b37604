"""Further training of a bundle: its denoiser and text encoder, on its own latents, into a new bundle.

The bundle is first unpacked into the folders that its stages would have written, so that stages need no special case.
"""

import dataclasses
import shutil
from pathlib import Path

from diffsplat.bundle import Bundle, open_bundle
from diffsplat.networks import bundle_network
from training.checkpoint import FINISHED, MANIFEST, read_finished, save_finished
from training.config.chain import RefineConfig
from training.recipe import STAGE_FOLDERS, bundle_runs, run_stage
from training.stages.diffusion import TOKENIZER_FILE


def run_refinement(config: RefineConfig) -> Bundle:
    """Train ``config.diffusion`` from the weights of ``config.bundle`` and write ``<out>/bundle``.

    Raises:
        BundleError: the bundle is missing or damaged.
        ValueError: a field is out of range, or the bundle has another backbone than the stage.
        Interrupted: stopped by a signal.
    """
    bundle = open_bundle(config.bundle)
    if bundle.spec.name != config.diffusion.backbone:
        raise ValueError(f"bundle = {config.bundle} is of backbone {bundle.spec.name}, not {config.diffusion.backbone}")
    start = config.out / "start"
    stage = dataclasses.replace(
        config.diffusion,
        recon=start / "recon",
        vae=start / "vae",
        start=start / "diffusion",
        run=dataclasses.replace(config.diffusion.run, out=config.out / "diffusion", resume=config.resume),
    )
    stage.check()
    if not all((start / name / FINISHED / MANIFEST).is_file() for name in STAGE_FOLDERS):
        unpack(bundle, start)
    run_stage(stage)
    runs = {name: start / name for name in STAGE_FOLDERS}
    return bundle_runs({**runs, "diffusion": config.out / "diffusion"}, config.out / "bundle")


def unpack(bundle: Bundle, out: Path) -> None:
    """Write the finished stages of a bundle into their folders below `out`, replacing what is there."""
    stages = bundle.lineage["stages"]
    for name in STAGE_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    save_finished(out / "recon", {"gsrecon": bundle_network(bundle, "gsrecon")}, stages["recon"], {})
    recon = read_finished(out / "recon")["files"]
    # The decoder stage does not change the encoder, so one network serves for both stages.
    gsvae = {"gsvae": bundle_network(bundle, "gsvae")}
    save_finished(out / "vae", gsvae, {**stages["vae"], "recon": recon}, {})
    latents = read_finished(out / "vae")["files"]
    save_finished(out / "decoder", gsvae, {**stages["decoder"], "recon": recon, "vae": latents}, {})
    networks = {name: bundle_network(bundle, name) for name in ("denoiser", "text_encoder")}
    facts = {**stages["diffusion"], "spec": bundle.spec.to_dict(), "parents": {"recon": recon, "vae": latents}}
    save_finished(out / "diffusion", networks, facts, {TOKENIZER_FILE: bundle.tokenizer_paths[0].read_text()})
