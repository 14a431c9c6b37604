"""Image conditions and the rendering loss of denoisers, on tiny base models."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest
from safetensors.torch import load_file

from diffsplat.denoisers.view_inputs import network_input
from diffsplat.pipeline import Pipeline
from tests.families import CAPTIONS
from tests.image_files import image
from training.assemble import bundle_runs
from training.checkpoint import CheckpointError, read_finished
from training.conditions import condition_latents
from training.config.common import Cadence, Optim, RenderWeights
from training.config.diffusion import DiffusionConfig, RenderingOptions
from training.config.encode_text import EncodeTextConfig
from training.encode_text import run_encode_text
from training.loop import step_generator
from training.objectives import Dropped
from training.recipe import run_stage
from training.stages.diffusion import DiffusionStage

RENDERED = RenderingOptions(probability=1.0, weights=RenderWeights(coord=0.5, ssim=0.1), min_snr_gamma=1.0)
Configure = Callable[..., DiffusionConfig]


def built(config: DiffusionConfig) -> DiffusionStage:
    stage = DiffusionStage(config)
    torch.manual_seed(0)
    stage.build()
    return stage


def test_condition_latents_are_samples_of_the_posterior_and_zero_where_dropped() -> None:
    moments = torch.stack([torch.full((2, 4, 8, 8), 3.0), torch.full((2, 4, 8, 8), 0.5)], dim=1)
    dropped = torch.tensor([False, True])
    latents = condition_latents(moments, dropped, 0.0, torch.Generator().manual_seed(0))
    assert abs(latents[0].mean().item() - 3.0) < 0.15 and abs(latents[0].std().item() - 0.5) < 0.1
    assert not latents[1].any()
    shifted = condition_latents(moments, dropped, 0.25, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shifted[0], latents[0] - 0.25)
    assert not shifted[1].any()


@pytest.mark.parametrize("name", ["pixart_alpha_image"])
def test_an_image_model_trains_with_a_rendering_loss_from_a_run_without_one(
    name: str, diffusion_config: Configure, tmp_path: Path
) -> None:
    """The published order: from the base model without, then from that run with a rendering loss."""
    first = diffusion_config(name, tmp_path / "first")
    run_stage(first)
    second = dataclasses.replace(
        first,
        run=dataclasses.replace(first.run, out=tmp_path / "second"),
        start=tmp_path / "first",
        base=first.start,
        rendering=RENDERED,
        evaluation_guidance=(1.0, 2.0),
    )
    run_stage(second)
    facts = read_finished(tmp_path / "second")
    assert facts["spec"]["image_encoder"] and {"mse", "mse_no_text", "mse_no_image"} <= set(facts["metrics"])
    panels = {path.stem for path in (tmp_path / "second" / "panels").glob("*.png")}
    assert len(panels) == 2 and all("cfg" in panel for panel in panels)
    log = (tmp_path / "second" / "log.jsonl").read_text()
    assert "render_loss" in log and "coord_mse" in log and "dssim" in log
    assert "render_loss" not in (tmp_path / "first" / "log.jsonl").read_text()


def test_the_condition_view_shows_the_reference_view_and_reaches_the_network(
    diffusion_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = built(diffusion_config("sd15_image", tmp_path))
    batch = next(stage.stream(0, 1))
    objects = stage._objects(False)
    number = [objects.source.uid(index) for index in range(len(objects))].index(batch.uids[0])
    shown = objects.seen_from(number, 0).images_rgb[:1]
    mean, _ = stage.encoders.image_encoder.moments(torch.nn.functional.interpolate(shown, (32, 32)))
    torch.testing.assert_close(batch.image_moments[0, 0], mean[0], rtol=1e-4, atol=1e-4)

    seen = []
    monkeypatch.setattr(
        "diffsplat.denoisers.unet.network_input",
        lambda *inputs: seen.append(inputs[2]) or network_input(*inputs),
    )
    kept = torch.tensor([False, True])
    stage.guess(batch, Dropped(kept, kept), step_generator(0, 0, 0))
    assert seen[0][0].any() and not seen[0][1].any()


def test_the_rendering_loss_is_added_with_its_weights(diffusion_config: Configure, tmp_path: Path) -> None:
    plain = diffusion_config("sd15", tmp_path)
    batch = next(built(dataclasses.replace(plain, rendering=RENDERED)).stream(0, 1))
    assert batch.views is not None
    torch.testing.assert_close(batch.views.camera_to_world[:, :4], batch.cameras.camera_to_world)

    def loss(**options: Any) -> tuple[float, dict[str, Any]]:
        rendering = dataclasses.replace(RENDERED, **options)
        stage = built(dataclasses.replace(plain, rendering=rendering))
        total, parts = stage.loss(batch, step_generator(0, 0, 1))
        return total.item(), parts

    diffusion, parts = loss(probability=0.0)
    assert "render_loss" not in parts
    total, parts = loss(diffusion_weight=2.0, render_weight=3.0)
    assert total == pytest.approx(2.0 * diffusion + 3.0 * parts["render_loss"].item(), rel=1e-5)
    half = built(dataclasses.replace(plain, rendering=dataclasses.replace(RENDERED, probability=0.5))).rendered
    assert half is not None and 30 < sum(half.is_drawn(step_generator(0, 0, step)) for step in range(100)) < 70
    unweighted = loss(min_snr_gamma=0.0)[1]["render_loss"]
    assert parts["render_loss"] < unweighted  # noisy objects count less
    assert loss(decoder="full")[1]["render_loss"] != parts["render_loss"]


def test_gradients_of_the_rendering_loss_reach_the_denoiser_alone(diffusion_config: Configure, tmp_path: Path) -> None:
    rendering = dataclasses.replace(RENDERED, diffusion_weight=0.0)
    config = dataclasses.replace(diffusion_config("sd3", tmp_path), rendering=rendering)
    sizes = {}
    for compat in (False, True):
        stage = built(dataclasses.replace(config, compat=compat))
        stage.gsvae.tiny_decoder.layers[-1].weight *= 1e4  # nearly all of the grid leaves [-1, 1]
        total, _ = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 2))
        total.backward()
        sizes[compat] = sum(parameter.grad.abs().sum().item() for parameter in stage.denoiser.parameters())
        assert all(parameter.grad is None for parameter in stage.gsvae.parameters())
    assert sizes[True] < 0.05 * sizes[False]  # the published clamp has no gradient there


@pytest.mark.parametrize("name", ["sd35_image"])
def test_a_trained_denoiser_is_served_from_a_bundle(name: str, diffusion_config: Configure, tmp_path: Path) -> None:
    """With the parts of its base model: text encoders and, for image models, the image autoencoder."""
    config = dataclasses.replace(diffusion_config(name, tmp_path / "run"), optim=Optim(steps=1, warmup_steps=0))
    run_stage(config)
    runs = {"recon": config.recon, "vae": config.vae, "diffusion": config.run.out, "base": config.start}
    bundle = bundle_runs(runs, tmp_path / "bundle")
    pipeline = Pipeline.from_bundle(bundle)
    picture = image(0) if name.endswith("_image") else None
    result = pipeline.generate(GenerationRequest(CAPTIONS[0], image=picture, elevation_deg=10.0, steps=1, seed=1))
    assert result.splats.shape == (4 * 32 * 32, 14) and np.isfinite(result.splats).all()


@pytest.mark.parametrize("name", ["sdxl", "pixart_alpha"])
def test_stored_text_is_that_of_the_frozen_encoders(name: str, diffusion_config: Configure, tmp_path: Path) -> None:
    """Null text too, for SDXL zeros; an object without its text is refused before latents are computed."""
    config = diffusion_config(name, tmp_path / "run")
    frozen = built(config)
    batch = next(frozen.stream(0, 1))
    objects = [frozen._objects(validation).source for validation in (False, True)]
    captions = [f"{source.uid(row)},{source.caption(row, None)}" for source in objects for row in range(len(source))]
    (tmp_path / "captions.csv").write_text("\n".join(captions) + "\n")
    text = EncodeTextConfig(
        backbone=config.backbone, encoders=config.start, captions=tmp_path / "captions.csv", out=tmp_path / "text",
        precision="fp32", stored="fp32", threads=1,
    )  # fmt: skip
    run_encode_text(text)
    with_store = dataclasses.replace(config, text="stored", text_store=tmp_path / "text")
    stored = built(with_store)
    plain = batch._replace(
        captions=tuple(stored.text.store.caption(uid) for uid in batch.uids)  # what was encoded
    )
    dropped = Dropped(torch.tensor([False, True]), torch.zeros(2, dtype=torch.bool))
    guesses = [stage.guess(plain, dropped, step_generator(0, 0, 0)).output for stage in (frozen, stored)]
    torch.testing.assert_close(*guesses, rtol=1e-4, atol=1e-5)
    (tmp_path / "captions.csv").write_text("\n".join(captions[:2]) + "\n")
    run_encode_text(dataclasses.replace(text, out=tmp_path / "fewer"))
    with pytest.raises(ValueError, match="no text embedding of 2 of 4 objects"):
        built(dataclasses.replace(with_store, text_store=tmp_path / "fewer")).stream(0, 1)


def test_a_damaged_file_of_latents_is_refused_by_name(diffusion_config: Configure, tmp_path: Path) -> None:
    config = diffusion_config("sd15", tmp_path)
    built(config).stream(0, 1)
    (file,) = (tmp_path / "latents").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{file.name}: cannot be read"):
        built(config).stream(0, 1)


def test_what_a_denoiser_cannot_start_from_is_refused_by_name(diffusion_config: Configure, tmp_path: Path) -> None:
    config = diffusion_config("sd15", tmp_path)
    with_image = diffusion_config("sd15_image", tmp_path)
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (dataclasses.replace(config, start=tmp_path / "empty"), "start = .*: must be a finished run, a bundle"),
        (dataclasses.replace(config, start=None), "base is not set: .* is needed for frozen text encoders"),
        (dataclasses.replace(with_image, start=None, base=None), "base is not set"),
        (dataclasses.replace(config, text="trained"), "text = 'trained': those of tiny_sd15 are frozen"),
        (dataclasses.replace(config, text="stored"), "text_store is not set: it belongs to text = 'stored'"),
        (dataclasses.replace(config, text_store=tmp_path), "text_store is .*: it belongs to text = 'stored'"),
        (dataclasses.replace(config, rendering=RenderingOptions(probability=2.0)), "rendering.probability = 2.0"),
        (dataclasses.replace(config, evaluation_guidance=(0.5,)), r"evaluation_guidance = 0.5 must lie in \[1.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run_stage(wrong)
    run_stage(dataclasses.replace(config, run=dataclasses.replace(config.run, out=tmp_path / "text")))
    with pytest.raises(ValueError, match="was trained with another spec than tiny_sd21"):
        other = diffusion_config("sd21", tmp_path)
        DiffusionStage(
            dataclasses.replace(other, start=tmp_path / "text", base=other.start, recon=config.recon, vae=config.vae)
        )
    with pytest.raises(CheckpointError, match="the run did not train its text encoder"):
        DiffusionStage(dataclasses.replace(config, backbone="pico", text="trained", start=tmp_path / "text"))


def test_an_image_model_may_start_from_its_text_model(diffusion_config: Configure, tmp_path: Path) -> None:
    text = dataclasses.replace(diffusion_config("sd3", tmp_path / "text"), optim=Optim(steps=1, warmup_steps=0))
    run_stage(text)
    image = diffusion_config("sd3_image", tmp_path / "image")
    stage = built(dataclasses.replace(image, start=tmp_path / "text", base=image.start))
    first = stage.denoiser.pos_embed.proj.weight
    before = load_file(tmp_path / "text" / "finished" / "denoiser.safetensors")["pos_embed.proj.weight"]
    assert torch.equal(first[:, :-1], before) and not first[:, -1].any()
    with pytest.raises(ValueError, match="was trained with another spec than tiny_sd3"):
        finished = dataclasses.replace(image, start=tmp_path / "text", base=image.start, optim=text.optim)
        run_stage(dataclasses.replace(finished, cadence=Cadence(evaluate_every=10)))
        DiffusionStage(dataclasses.replace(text, start=tmp_path / "image", base=image.start))
