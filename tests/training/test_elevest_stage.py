"""ElevEst is trained, continues bit-exactly, starts from official weights, and a bundle serves what came of it."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from diffsplat.images.dinov2 import DinoConfig
from diffsplat.images.elevest import ElevEstConfig
from diffsplat.images.official_dinov2 import load_official_dinov2
from diffsplat.images.prepare import elevation_input
from diffsplat.stages.encode import EncodeStage
from tests.families import write_family_bundle
from tests.training.resuming import check_resume
from training.assemble import bundle_runs
from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.elevest import ElevationConfig
from training.data.procedural.synthetic import synthetic_object
from training.data.sample import Batch, build_sample
from training.loop import step_generator
from training.optim import scaled_groups
from training.presets.elevest import PUBLISHED
from training.recipe import run_stage
from training.stages.elevest import ElevationStage, camera_elevations_deg

STEPS = 12
DINO = DinoConfig(image_size=32, patch_size=8, dim=16, num_blocks=1, num_heads=2, num_registers=2)
NETWORK = ElevEstConfig(backbone=DINO, input_size=32)


def config(out: Path, **options: Any) -> ElevationConfig:
    made = ElevationConfig(
        preset="tiny/elevest",
        data=Data(objects=8, validation_objects=3, batch_size=2, views=4, pool_size=2),
        optim=Optim(steps=STEPS, lr=1e-2, warmup_steps=1),
        cadence=Cadence(log_every=1, evaluate_every=STEPS, save_every=5),
        network=NETWORK,
        run=RunOptions(out=out, threads=1),
    )
    return dataclasses.replace(made, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elevest")
    run_stage(config(out))
    return out


def test_the_loss_falls_and_estimates_are_drawn(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == STEPS and np.mean(losses[-3:]) < 0.8 * losses[0]
    assert {"bins", "offset", "error_deg", "outside"} <= records[0].keys()
    assert any("validation/error_deg" in record for record in records)
    (panel,) = (finished / "panels").glob("*_estimate_against_truth.png")
    with Image.open(panel) as image:
        assert np.asarray(image).min() < 200


def test_it_continues_exactly(finished: Path, tmp_path: Path) -> None:
    check_resume(config(finished), tmp_path, 8)


def one_batch(stage: ElevationStage) -> Batch:
    torch.manual_seed(0)
    stage.build()
    return next(stage.stream(0, 1))


def test_angles_are_those_of_the_cameras_and_of_requests(tmp_path: Path) -> None:
    """Negative is above the horizon inside the network; the rings of the layout lie at 5..30 and -5..5 degrees."""
    stage = ElevationStage(config(tmp_path))
    batch = one_batch(stage)
    angles = camera_elevations_deg(batch).reshape(2, -1)
    heights = batch.camera_to_world[..., 1, 3]  # y is up
    assert torch.equal(angles < 0, heights > 0)
    distance = batch.camera_to_world[..., :3, 3].norm(dim=-1)
    expected = -torch.rad2deg(torch.asin(heights / distance))
    assert torch.allclose(angles, expected, atol=1e-3)
    assert angles.min() < 0


def test_views_are_random_without_poles(tmp_path: Path) -> None:
    """Another draw each time, and no camera straight above or below."""
    stage = ElevationStage(config(tmp_path))
    objects = stage.objects(validation=False)
    assert objects.sample(0, np.random.default_rng(0)).images_rgb.shape == (4, 3, 32, 32)
    drawn = [objects.sample(0, np.random.default_rng(seed)).camera_to_world for seed in range(12)]
    assert len({round(float(cameras.sum()), 4) for cameras in drawn}) > 6
    heights = torch.stack(drawn)[..., 1, 3] / torch.stack(drawn)[..., :3, 3].norm(dim=-1)
    assert heights.abs().max() < math.sin(math.radians(31))


def test_pictures_without_normals_are_enough() -> None:
    views = synthetic_object(0, 0).render((0, 1), 16)
    bare = views._replace(normals=views.normals[..., :0], depths=np.zeros_like(views.depths))
    sample = build_sample(bare, "", "bare", "pixel_centers")
    whole = build_sample(views, "", "whole", "pixel_centers")
    assert torch.equal(sample.images_rgb, whole.images_rgb) and sample.normals.shape == (2, 0, 16, 16)
    assert torch.equal(sample.camera_to_world, whole.camera_to_world)


def test_views_outside_the_bins_are_left_out_counted_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = ElevationStage(config(tmp_path))
    batch = one_batch(stage)
    whole, _ = stage.loss(batch, step_generator(0, 0, 0))
    turned = batch.camera_to_world.clone()
    turned[0, 0, :3, 3] = torch.tensor([0.0, -1.4, 0.1])  # straight from below: +86 degrees
    changed = batch._replace(camera_to_world=turned)
    loss, parts = stage.loss(changed, step_generator(0, 0, 0))
    assert parts["outside"] == 1 and math.isfinite(loss.item()) and loss.item() != whole.item()
    stage.loss(changed, step_generator(0, 0, 0))
    told = capsys.readouterr().out
    assert told.count("lie outside the bins' range, -40 .. 10 degrees") == 1 and "85." in told
    images = batch.images_rgb.flatten(0, 1)[1:].reshape(1, -1, *batch.images_rgb.shape[2:])  # the others alone
    cameras = batch.camera_to_world.flatten(0, 1)[1:][None]
    rest, _ = stage.loss(batch._replace(images_rgb=images, camera_to_world=cameras), step_generator(0, 0, 0))
    assert rest.item() == pytest.approx(loss.item(), rel=1e-5)
    turned[:, :, :3, 3] = torch.tensor([0.0, -1.4, 0.1])
    nothing, parts = stage.loss(batch._replace(camera_to_world=turned), step_generator(0, 0, 0))
    assert nothing.item() == 0.0 and parts["outside"] == batch.images_rgb.shape[0] * batch.images_rgb.shape[1]
    nothing.backward()  # and no gradient


def test_bins_that_no_camera_has_are_refused_before_training(tmp_path: Path) -> None:
    network = dataclasses.replace(NETWORK, lowest_deg=60.0, highest_deg=80.0)
    with pytest.raises(ValueError, match=r"no view of the validation objects lies in the bins' range, 60 .. 80"):
        run_stage(config(tmp_path / "run", network=network))
    with pytest.raises(ValueError, match=r"network.num_bins = 1 must lie in \[2,"):
        run_stage(config(tmp_path / "run", network=dataclasses.replace(NETWORK, num_bins=1)))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_compat_clamps_the_offset_in_training(tmp_path: Path) -> None:
    """As published: an offset outside its bin gets no gradient. Otherwise it does."""
    for compat in (False, True):
        stage = ElevationStage(config(tmp_path, compat=compat))
        batch = one_batch(stage)
        stage.network.offset_head[2].bias.data.fill_(-30.0)
        stage.loss(batch, step_generator(0, 0, 0))[0].backward()
        gradient = stage.network.offset_head[2].bias.grad
        assert gradient is not None and bool(gradient.any()) is not compat


def test_options_change_what_is_trained(tmp_path: Path) -> None:
    stage = ElevationStage(config(tmp_path, freeze_backbone=True, offset_weight=0.0))
    batch = one_batch(stage)
    loss, parts = stage.loss(batch, step_generator(0, 0, 0))
    assert loss.item() == parts["bins"].item()
    groups = [parameter for group in stage.param_groups() for parameter in group["params"]]
    heads = [*stage.network.cls_head.parameters(), *stage.network.offset_head.parameters()]
    assert {id(parameter) for parameter in groups} == {id(parameter) for parameter in heads}


def test_the_published_backbone_learns_ten_times_slower(tmp_path: Path) -> None:
    stage = ElevationStage(config(tmp_path))
    network = stage.build()
    groups = scaled_groups(stage.param_groups(), network, PUBLISHED.optim.lr_multipliers)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert {scales[id(parameter)] for parameter in stage.network.backbone.parameters()} == {0.1}
    assert {scales[id(parameter)] for parameter in stage.network.cls_head.parameters()} == {1.0}


def stock() -> Any:
    torch.manual_seed(1)
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=DINO.dim, num_hidden_layers=1, num_attention_heads=2, image_size=DINO.image_size, patch_size=8,
            num_register_tokens=2, mlp_ratio=4,
        )
    ).eval()  # fmt: skip


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the files on the hub, which older libraries wrote."""
    changes = (("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"))
    changes += (("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"))
    renamed = {}
    for name, tensor in state.items():
        for new, old in changes:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("spelling", ["as saved", "old names", "file of Meta's"])
def test_a_start_from_official_weights(spelling: str, tmp_path: Path) -> None:
    model = stock()
    folder = tmp_path / "dinov2"
    model.save_pretrained(folder)
    if spelling == "old names":
        save_file(old_names(model.state_dict()), folder / "model.safetensors")
    start = folder
    if spelling == "file of Meta's":
        start = tmp_path / "dinov2_reg4_pretrain.pth"
        torch.save(load_official_dinov2(folder, DINO).state_dict(), start)
    stage = ElevationStage(config(tmp_path / "run", start=start))
    torch.manual_seed(0)
    stage.build()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 0]
        assert torch.allclose(stage.network.eval().backbone(images).class_token, expected, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "dinov2"
    stock().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"config.json: another network: num_hidden_layers is 1, not 2"):
        load_official_dinov2(folder, dataclasses.replace(DINO, num_blocks=2))
    state = load_file(folder / "model.safetensors")
    del state["layernorm.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"dinov2: does not fit: norm.bias is missing, not \(16,\)"):
        load_official_dinov2(folder, DINO)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model.safetensors: not readable"):
        load_official_dinov2(folder, DINO)
    with pytest.raises(ValueError, match=r"none.pth: missing; must be a .pth file"):
        load_official_dinov2(tmp_path / "none.pth", DINO)
    with pytest.raises(ValueError, match=r"start = .*: was trained with network ="):
        ElevationStage(config(tmp_path / "run", start=finished, network=dataclasses.replace(NETWORK, num_bins=10)))


def test_a_bundle_with_it_estimates_elevations(finished: Path, tmp_path: Path) -> None:
    """What is served equals what the stage evaluates, with the user's sign."""
    base = write_family_bundle(tmp_path / "base", "sd15", controls=("normal",))
    bundle = bundle_runs({"base": base.root, "elevest": finished}, tmp_path / "bundle")
    assert bundle.spec.elevest is not None and bundle.lineage["stages"]["elevest"]["preset"] == "tiny/elevest"
    stage = ElevationStage(config(tmp_path / "run", start=finished))
    stage.build()
    picture = np.full((bundle.spec.image_size,) * 2 + (3,), 255, np.uint8)
    picture[8:20, 10:24] = (200, 30, 30)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    request = GenerationRequest(
        "a small red cube", control_image=file.getvalue(), control_type="normal", estimate_elevation=True, seed=0
    )
    served = EncodeStage.from_bundle(bundle).run(request).envelope.request.elevation_deg
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        prediction = stage.network.eval()(elevation_input(rgb, NETWORK.input_size))
    assert served == pytest.approx(-stage.network.internal_elevation_deg(prediction).item(), abs=0.05)  # fp16 weights
    assert -10 <= served <= 40
