"""ControlNets are trained on a frozen denoiser, continue bit-exactly, and a bundle with one is steered by a map."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest
from PIL import Image
from safetensors.torch import load_file

from diffsplat.backbones import BACKBONES
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.denoisers.control_inputs import residual_numbers
from diffsplat.images.prepare import prepare_control_map
from diffsplat.pipeline import Pipeline
from tests.families import family_spec, write_family_bundle
from tests.image_files import encoded
from tests.training.resuming import check_resume
from training.assemble import bundle_runs
from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.controlnet import ControlNetConfig
from training.config.diffusion import RenderingOptions
from training.data.control_maps import ControlMaps, control_map, depth_map
from training.loop import step_generator
from training.objectives import Dropped
from training.optim import enable_gradient_checkpointing
from training.recipe import run_stage
from training.stages.common import dataset
from training.stages.controlnet import ControlNetStage

STEPS = 4
NAMES = ("tiny_sd15", "tiny_sdxl")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bundle]]:
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setitem(BACKBONES, name, family_spec(name.removeprefix("tiny_")))
            made[name] = write_family_bundle(tmp_path_factory.mktemp(name) / "bundle", name.removeprefix("tiny_"))
        yield made


def config(bundle: Bundle, out: Path, **options: Any) -> ControlNetConfig:
    made = ControlNetConfig(
        preset="tiny/controlnet",
        backbone=bundle.spec.name,
        data=Data(objects=4, validation_objects=2, batch_size=2, views=4, pool_size=0, first_views=(0,), workers=0),
        optim=Optim(steps=STEPS, lr=1e-2, warmup_steps=1),
        cadence=Cadence(log_every=1, evaluate_every=STEPS, save_every=2),
        recon=bundle.root,
        vae=bundle.root,
        start=bundle.root,
        evaluation_steps=2,
        run=RunOptions(out=out, threads=1),
    )
    return dataclasses.replace(made, **options)


@pytest.fixture(scope="module")
def finished(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("controlnet")
    run_stage(config(bundles["tiny_sd15"], out))
    return out


def trained(out: Path, kind: str = "normal") -> dict[str, torch.Tensor]:
    return load_file(out / "finished" / f"controlnet_{kind}.safetensors")


def test_a_run_logs_and_draws_the_steered_objects(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert len([record for record in records if "loss" in record]) == STEPS
    (validation,) = (record for record in records if "validation/mse" in record)
    assert {"validation/mse", "validation/mse_empty_map"} <= validation.keys()
    (panel,) = (finished / "panels").glob("*_map_decoded_generated.png")
    with Image.open(panel) as image:
        assert image.size == ((1 + 4 + 4) * 32 * 3, 2 * 32 * 3)


def test_it_continues_exactly(bundles: dict[str, Bundle], finished: Path, tmp_path: Path) -> None:
    check_resume(config(bundles["tiny_sd15"], finished), tmp_path, 4)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_denoiser_and_trains_alone(name: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Zero residuals at first; gradients reach the ControlNet alone, from the second step on its hint encoder too."""
    stage = ControlNetStage(config(bundles[name], tmp_path))
    torch.manual_seed(0)
    network = stage.build()
    batch = next(stage.stream(0, 1))
    kept = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        steered = stage.guess(batch, Dropped(kept, kept), step_generator(0, 0, 0)).output
        unet = stage.predict
        stage.residuals = lambda *given: torch.zeros(2, residual_numbers(stage.spec))  # type: ignore[method-assign]
        alone = stage.guess(batch, Dropped(kept, kept), step_generator(0, 0, 0)).output
        del stage.residuals
        assert stage.predict is unet
    assert torch.equal(steered, alone)
    optimizer = torch.optim.SGD([p for group in stage.param_groups() for p in group["params"]], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        stage.loss(batch, step_generator(0, 0, step))[0].backward()
        optimizer.step()
    touched = {key for key, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("cond_embedding.conv_in" in key for key in touched) and any("down_blocks.0" in key for key in touched)
    assert not any(p.requires_grad or p.grad is not None for p in stage.denoiser.parameters())
    with torch.no_grad():
        moved = stage.guess(batch, Dropped(kept, kept), step_generator(0, 0, 0)).output
        other = batch._replace(maps=1 - batch.maps)
        turned = stage.guess(other, Dropped(kept, kept), step_generator(0, 0, 0)).output
    assert not torch.equal(moved, steered) and not torch.equal(moved, turned)


def test_the_options_of_the_published_runs_are_effective(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Rendering loss through the frozen denoiser; gradient checkpointing changes no gradient."""
    gradients = []
    for checkpointing in (False, True):
        rendering = RenderingOptions(probability=1.0, decoder="full")
        stage = ControlNetStage(config(bundles["tiny_sd15"], tmp_path, rendering=rendering))
        torch.manual_seed(0)
        network = stage.build()
        if checkpointing:
            enable_gradient_checkpointing(network)
        loss, parts = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 0))
        loss.backward()
        assert loss.item() > parts["mse"].item() and parts["render_loss"] > 0
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and any(bool(gradient.any()) for gradient in plain.values())
    assert all(torch.allclose(plain[name], checkpointed[name], rtol=1e-4, atol=1e-7) for name in plain)


def test_its_encoder_is_the_denoisers_and_dropout_spares_the_map(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    stage = ControlNetStage(config(bundles["tiny_sd15"], tmp_path, dropout_rate=0.5))  # every caption
    stage.build()
    ours, theirs = stage.controlnet.state_dict(), stage.denoiser.state_dict()
    copied = [name for name in ours if name in theirs]
    assert any(name.startswith("mid_block") for name in copied) and len(copied) > 20
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)
    seen = []
    stage.text = type("Text", (), {"features": lambda _, captions, uids, dropped: seen.append(dropped)})()  # type: ignore[assignment]
    stage.predict_views = lambda batch, inputs, *_: (seen.append(batch.maps), inputs)[1]  # type: ignore[method-assign, assignment]
    batch = next(stage.stream(0, 1))
    stage.loss(batch, step_generator(0, 0, 0))
    assert seen[0].all() and torch.equal(seen[1], batch.maps)


@pytest.mark.parametrize("kind", ["normal", "depth", "canny"])
def test_maps_are_what_serving_makes_of_the_same_picture(kind: Any, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Of view 0 alone, at the hints' size; canny is serving's EXTRACT_CANNY of the view's picture."""
    run = config(bundles["tiny_sd15"], tmp_path, control=kind)
    stage, objects = ControlNetStage(run), dataset(run.data, run.backbone, False)
    stage.build()
    batch = next(stage.stream(0, 1))
    size = stage.spec.hint_size
    assert batch.maps.shape == (2, 3, size, size) and 0 <= batch.maps.min() and batch.maps.max() == 1
    index = [objects.source.uid(index) for index in range(4)].index(batch.uids[0])
    sample = objects.seen_from(index, 0)
    assert torch.equal(batch.maps[0], control_map(kind, sample, size))
    picture = (sample.images_rgb if kind == "canny" else sample.normals if kind == "normal" else depths(sample))[0]
    pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    served = prepare_control_map(encoded(Image.fromarray(pixels)), size, extract_canny=kind == "canny").hint
    difference = (batch.maps[0] - served).abs()
    assert difference.max() < 1.5 / 255 or (kind == "canny" and (difference > 0.1).float().mean() < 0.02)


def depths(sample: Any) -> torch.Tensor:
    return depth_map(sample.depths[0], sample.alphas[0])[None]


def test_near_is_bright_far_is_dark_and_the_background_white() -> None:
    depth = torch.tensor([[[0.0, 1.0, 1.5, 2.0]]])
    assert torch.allclose(depth_map(depth, (depth > 0).float()), torch.tensor([1.0, 0.5, 0.25, 0.0]).expand(3, 1, 4))
    assert torch.equal(depth_map(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)), torch.ones(3, 2, 2))


def test_a_bundle_with_it_is_steered(bundles: dict[str, Bundle], finished: Path, tmp_path: Path) -> None:
    base = bundles["tiny_sd15"]
    bundle = bundle_runs({"base": base.root, "controlnet_normal": finished}, tmp_path / "bundle")
    assert bundle.spec.controls == ("normal",)
    assert bundle.lineage["stages"]["controlnet_normal"]["preset"] == "tiny/controlnet"
    assert {name: bundle.files[name] for name in base.files} == base.files  # the rest is as it was
    pipeline = Pipeline.from_bundle(open_bundle(bundle.root))
    objects = ControlMaps("normal", dataset(Data(objects=4, views=4, pool_size=0), base.spec.name, False), 64)
    shown = (objects.of(0, 0).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    asked = GenerationRequest("a small red cube", seed=1, steps=2)
    free = pipeline.generate(asked).splats
    controlled = dataclasses.replace(asked, control_image=encoded(Image.fromarray(shown)), control_type="normal")
    steered = pipeline.generate(controlled).splats
    off = pipeline.generate(dataclasses.replace(controlled, control_scale=0.0)).splats
    assert not np.array_equal(free, steered) and np.isfinite(steered).all()
    assert np.allclose(free, off, atol=1e-5)


def test_a_controlnet_of_another_denoiser_is_refused(finished: Path, tmp_path: Path, bundles: Any) -> None:
    other = write_family_bundle(tmp_path / "other", "sd15", seed=5)
    with pytest.raises(ValueError, match="was trained for another denoiser than that of"):
        bundle_runs({"base": other.root, "controlnet_normal": finished}, tmp_path / "bundle")


def test_training_goes_on_from_a_run_or_a_bundle(bundles: dict[str, Bundle], finished: Path, tmp_path: Path) -> None:
    base = bundles["tiny_sd15"]
    bundle = bundle_runs({"base": base.root, "controlnet_normal": finished}, tmp_path / "bundle")
    for start, tolerance in ((finished, 0.0), (bundle.root, 1e-3)):
        stage = ControlNetStage(config(base, tmp_path / "run", controlnet_start=start))
        stage.build()
        for name, tensor in trained(finished).items():
            assert (stage.controlnet.state_dict()[name] - tensor).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": None}, "start is not set: must name the run, bundle or base model"),
        ({"text": "trained"}, "text = 'trained': must be 'frozen' or 'stored'"),
        ({"backbone": "sd15_image"}, "'sd15_image': a ControlNet needs a UNet that is conditioned on text alone"),
        ({"backbone": "sd3"}, "'sd3': a ControlNet needs a UNet that is conditioned on text alone"),
        ({"control": "edges"}, "control = 'edges' must be one of depth, normal, canny"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    options: dict[str, Any], message: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_stage(config(bundles["tiny_sd15"], tmp_path / "run", **options))
    assert not (tmp_path / "run" / "log.jsonl").exists()
