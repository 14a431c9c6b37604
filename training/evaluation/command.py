"""`python -m training evaluate`: a run or a bundle on objects that training never saw; report.json and sheet.png."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffsplat_client.request import GenerationRequest
from PIL import Image
from torch import Tensor

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.bundle import MANIFEST, open_bundle
from diffsplat.geometry.cameras import generated_view_cameras
from diffsplat.geometry.gaussians import from_array
from diffsplat.pipeline import Pipeline
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import GSVAE, build_gsvae
from diffsplat.splats.render import render
from training.checkpoint import read_finished
from training.config.common import StageConfig
from training.config.evaluate import EvaluateConfig
from training.data.sample import Batch
from training.evaluation.judges import Judges, open_judges, pair_distances, pooled_features
from training.evaluation.metrics import distances, frechet_distance, image_psnr, image_ssim
from training.parents import open_parent
from training.report import with_time_left
from training.stages.common import ObjectStage, comparison_panel

_LPIPS_SIZE, _EFFNET_SIZE = 256, 224
_CHUNK = 4  # objects rendered together
_SHEET_OBJECTS = 8


class _Evaluated(ObjectStage):
    """The objects, cameras and renders of an evaluation."""

    name = "evaluate"


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Measure, print, and write ``<out>/report.json`` and ``<out>/sheet.png``; returns the report.

    Raises:
        ValueError: the source is neither a run nor a bundle, lacks a parent, or a judge's weights are not what they
            should be.
    """
    config.check()
    judges = open_judges(config.clip, config.image_reward, config.device)
    is_bundle = (config.source / MANIFEST).is_file()
    spec = open_bundle(config.source).spec if is_bundle else _backbone(config)
    stage = _Evaluated(StageConfig(backbone=spec.name, data=config.data))
    stage.spec, stage.geometry = spec, spec.geometry
    truth = stage.validation_batch()
    report: dict[str, Any] = {
        "source": str(config.source),
        "backbone": spec.name,
        "objects": len(truth.uids),
        "views": _view_figures(config, stage, truth, judges, is_bundle),
    }
    rows = report["views"].pop("images")
    if is_bundle and config.prompts:
        report["text"], rows["generated"] = _text_figures(config, spec, truth, judges)
    if config.probes:
        report["probes"] = _probes(config.source, is_bundle)
    report["not_measured"] = judges.missing
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    Image.fromarray(contact_sheet(rows)).save(config.out / "sheet.png")
    return report


def summary(report: dict[str, Any]) -> str:
    """The report's figures, one a line."""
    lines = [f"{report['source']} ({report['backbone']}), {report['objects']} objects that training never saw"]
    for suite in ("views", "text"):
        for name, figures in report.get(suite, {}).items():
            if not isinstance(figures, dict):
                lines.append(f"{suite}: {name} {figures:.4g}")
                continue
            values = (
                f"{key} {value['mean'] if isinstance(value, dict) else value:.4g}" for key, value in figures.items()
            )
            lines.append(f"{suite}: {name}: {', '.join(values)}")
    lines += [f"not measured: {name}: {why}" for name, why in report["not_measured"].items()]
    return "\n".join(lines)


@torch.no_grad()
def _view_figures(
    config: EvaluateConfig, stage: ObjectStage, truth: Batch, judges: Judges, is_bundle: bool
) -> dict[str, Any]:
    """Input and novel views through GSRecon and, where there is one, through the autoencoder's decoders."""
    spec, inputs = stage.spec, stage.geometry.views
    held = (
        read_finished(config.source)["files"] if not is_bundle else {"gsrecon.safetensors": {}, "gsvae.safetensors": {}}
    )
    has_vae = "gsvae.safetensors" in held
    if not has_vae and "gsrecon.safetensors" not in held:
        raise ValueError(f"source = {config.source}: holds {', '.join(held)}; make a bundle of it to evaluate it")
    recon_source = config.source if "gsrecon.safetensors" in held else config.recon
    if recon_source is None:
        raise ValueError(f"recon is not set: the autoencoder of {config.source} needs the GSRecon it was trained on")
    gsrecon = open_parent(recon_source, "gsrecon").load("gsrecon", build_gsrecon(spec)).to(config.device)
    decoders = {}
    if has_vae:
        gsvae = _open_autoencoder(config, spec)
        decoders["vae"] = gsvae.decode
        if gsvae.tiny_decoder is not None:
            decoders["tiny_decoder"] = gsvae.decode_tiny
    shown: dict[str, list[Tensor]] = {name: [] for name in ("recon", *decoders)}
    starts = range(0, len(truth.uids), _CHUNK)
    for start in with_time_left(starts, "views"):
        batch = truth.rows(slice(start, start + _CHUNK)).to(config.device)
        grid = stage.reconstruct(gsrecon, batch)
        grids = {"recon": grid}
        if decoders:
            latents = gsvae.encode(grid)
            grids |= {name: decode(latents) for name, decode in decoders.items()}
        for name, one in grids.items():
            shown[name].append(stage.render(stage.gaussians(one, batch), batch).rgb.clamp(0, 1).cpu())
    images = {name: torch.cat(parts) for name, parts in shown.items()}
    figures: dict[str, Any] = {}
    for name, rendered in images.items():
        for where, views in (("input", slice(0, inputs)), ("novel", slice(inputs, None))):
            pair = (rendered[:, views].flatten(0, 1), truth.images_rgb[:, views].flatten(0, 1))
            figures[f"{name}_{where}"] = pair_figures(*pair, judges, config.device)
    return {**figures, "images": {"truth": truth.images_rgb, **images}}


def pair_figures(shown: Tensor, truth: Tensor, judges: Judges, device: str = "cpu") -> dict[str, Any]:
    """All figures of images against their true ones, [N, 3, H, W] twice, by name."""
    figures = {"psnr_db": image_psnr(shown, truth)._asdict(), "ssim": image_ssim(shown, truth)._asdict()}
    shown, truth = shown.to(device), truth.to(device)
    if judges.lpips is not None:
        figures["lpips"] = distances(pair_distances(judges.lpips, shown, truth, _LPIPS_SIZE))._asdict()
    if judges.effnet is not None:
        figures["effnet-feature"] = distances(pair_distances(judges.effnet, shown, truth, _EFFNET_SIZE))._asdict()
    return figures


def _open_autoencoder(config: EvaluateConfig, spec: BackboneSpec) -> GSVAE:
    parent = open_parent(config.source, "gsvae")
    gsvae = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    gsvae |= parent.facts["latent_scale"]
    if parent.facts.get("tiny_decoder"):
        gsvae["tiny_decoder"] = parent.facts["tiny_decoder"]
    network = parent.load("gsvae", build_gsvae(dataclasses.replace(spec, gsvae=gsvae))).to(config.device)
    assert isinstance(network, GSVAE)
    return network


@torch.no_grad()
def _text_figures(
    config: EvaluateConfig, spec: BackboneSpec, truth: Batch, judges: Judges
) -> tuple[dict[str, Any], Tensor]:
    """Objects generated from captions: alignment with the prompts, and distance to true objects as a set."""
    prompts = [truth.captions[number % len(truth.captions)] for number in range(config.prompts)]
    pipeline = Pipeline.from_bundle(open_bundle(config.source))
    cameras = generated_view_cameras(spec.elevation_deg or 0.0, spec.distance, spec.geometry.views)
    size = spec.geometry.grid_size
    objects = []
    for number, prompt in with_time_left(list(enumerate(prompts)), "prompts"):
        request = GenerationRequest(prompt, seed=config.seed + number, steps=config.steps or None)
        splats = from_array(torch.from_numpy(pipeline.generate(request).splats))
        objects.append(render(splats, cameras, size, size, spec.geometry).rgb[0].clamp(0, 1))
    images = torch.stack(objects)  # [N, V, 3, H, W]
    figures: dict[str, Any] = {"prompts": len(prompts)}
    views = range(images.shape[1])  # as published: each view on its own, then mean and deviation over the views
    if judges.clip is not None:
        aligned = [judges.clip.align(images[:, view], prompts) for view in views]
        for name in ("similarity", "r_precision"):
            figures[f"clip_{name}"] = _over_views([getattr(one, name) for one in aligned])
    if judges.reward is not None:
        figures["image_reward"] = _over_views([judges.reward.mean(images[:, view], prompts) for view in views])
    if judges.effnet is not None:
        true_views = truth.images_rgb[:, : spec.geometry.views].flatten(0, 1)
        sets = (pooled_features(judges.effnet, part.to(config.device)) for part in (images.flatten(0, 1), true_views))
        figures["effnet-feature_frechet"] = frechet_distance(*sets)
    return figures, images


def _over_views(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _probes(source: Path, is_bundle: bool) -> dict[str, Any]:
    """Colours and shapes of generated procedural objects, by the benchmark that judges shipped bundles."""
    if not is_bundle:
        raise ValueError(f"probes: {source} is not a bundle; only bundles generate objects")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.quality", str(source), "--quick", "--json", str(path)]
        subprocess.run(command, check=False)  # its exit code tells of missed bars, which the figures show
        if not path.is_file():
            raise ValueError(f"probes: benchmarks.quality could not judge {source}; see above")
        return json.loads(path.read_text())


def contact_sheet(rows: dict[str, Tensor]) -> np.ndarray:
    """Views of the first objects, one row for each of truth, GSRecon, decoders; below them what was generated."""
    generated = rows.pop("generated", None)
    sheets = [comparison_panel(*rows.values(), objects=_SHEET_OBJECTS)]
    if generated is not None:
        sheets.append(comparison_panel(generated, objects=_SHEET_OBJECTS))
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255) for one in sheets]
    return np.concatenate(padded)


def _backbone(config: EvaluateConfig) -> BackboneSpec:
    if config.backbone not in BACKBONES:
        raise ValueError(f"backbone = {config.backbone!r}: a run needs one of {', '.join(BACKBONES)}")
    return BACKBONES[config.backbone]
