"""Every stage really trains on a shrunken backbone, and the chain ends in a bundle that the pipeline can use."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest
from safetensors.torch import load_file

from diffsplat.backbones import BACKBONES, PICO, TextSpec
from diffsplat.bundle import Bundle
from diffsplat.networks import bundle_network
from diffsplat.pipeline import Pipeline
from tests.training.resuming import check_resume
from training.assemble import bundle_runs
from training.checkpoint import CheckpointError, read_finished, save_finished
from training.config.chain import RecipeConfig, RefineConfig
from training.config.common import Cadence, Data, Optim, RunOptions, StageConfig
from training.config.diffusion import DiffusionConfig
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig
from training.loop import step_generator
from training.recipe import run_recipe, run_stage
from training.refine import run_refinement
from training.stages import build_stage
from training.stages.diffusion import DiffusionStage
from training.stages.recon import ReconStage
from training.stages.vae import VaeStage

STEPS = 20
DATA = Data(objects=24, validation_objects=4, batch_size=4, views=6, pool_size=2)
OPTIM = Optim(steps=STEPS, lr=3e-3, warmup_steps=2)
CADENCE = Cadence(log_every=1, evaluate_every=10, save_every=8)
(_ENCODER,) = PICO.text.encoders
TINY = dataclasses.replace(
    PICO,
    name="tiny",
    text=TextSpec(
        (dataclasses.replace(_ENCODER, config={**_ENCODER.config, "hidden_size": 16, "intermediate_size": 32}),)
    ),
    denoiser={**PICO.denoiser, "block_out_channels": [16, 16], "norm_num_groups": 4, "cross_attention_dim": 16},
    gsvae={**PICO.gsvae, "block_out_channels": [8, 8, 16], "norm_num_groups": 4},
    gsrecon={**PICO.gsrecon, "dim": 32, "num_blocks": 1},
    steps=2,
)


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    BACKBONES["tiny"] = TINY
    yield
    del BACKBONES["tiny"]


def recipe(out: Path, **options: bool) -> RecipeConfig:
    common = {"backbone": "tiny", "optim": OPTIM, "cadence": CADENCE}

    def at(name: str) -> RunOptions:
        return RunOptions(out=Path(name), threads=1)

    recon, vae = Path("recon"), Path("vae")
    return RecipeConfig(
        out=out,
        stages={
            "recon": ReconConfig(preset="tiny/recon", data=DATA, run=at("recon"), **common),
            "vae": VaeConfig(preset="tiny/vae", data=DATA, recon=recon, cache_grids=True, run=at("vae"), **common),
            "diffusion": DiffusionConfig(
                preset="tiny/diffusion", data=dataclasses.replace(DATA, batch_size=8), evaluation_steps=2, recon=recon,
                vae=vae, run=at("diffusion"), **common,
            ),
            "decoder": VaeConfig(
                preset="tiny/decoder", data=DATA, part="decoder", recon=recon, vae=vae, run=at("decoder"), **common
            ),
            "tiny-decoder": VaeConfig(
                preset="tiny/tiny-decoder", data=DATA, part="tiny", recon=recon, vae=Path("decoder"), tiny_width=8,
                tiny_blocks=1, cache_grids=True, run=at("tiny-decoder"), **common,
            ),
        },
        **options,
    )  # fmt: skip


def stages(made: RecipeConfig) -> list[StageConfig]:
    return list(made.placed().values())


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecipeConfig, Bundle]:
    """The whole chain, trained once."""
    made = recipe(tmp_path_factory.mktemp("runs") / "tiny")
    return made, run_recipe(made)


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["recon", "vae", "diffusion", "decoder", "tiny-decoder"])
def test_the_loss_falls_and_panels_are_written(chain: tuple[RecipeConfig, Bundle], stage: str) -> None:
    out = chain[0].out / stage
    losses = [record["loss"] for record in records(out) if "loss" in record]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert len(list((out / "panels").glob("*.png"))) == 2


def test_the_bundle_generates_and_tells_where_it_comes_from(chain: tuple[RecipeConfig, Bundle]) -> None:
    bundle = chain[1]
    lineage = bundle.lineage["stages"]
    assert list(lineage) == ["recon", "vae", "diffusion", "decoder", "tiny-decoder"]
    for name, facts in lineage.items():
        assert facts["preset"] == f"tiny/{name}" and facts["steps"] == STEPS and facts["seed"] == 0
        assert facts["data"] == {"kind": "procedural", "grammar": "basic", "seed": 0, "objects": 24}
        assert facts["metrics"] and facts["seconds"] > 0 and facts["revision"]
    result = Pipeline.from_bundle(bundle).generate(GenerationRequest("a red cube", seed=1))
    assert result.splats.shape == (4 * 32 * 32, 14) and np.isfinite(result.splats).all()


def test_the_bundle_carries_the_measured_latent_scale(chain: tuple[RecipeConfig, Bundle]) -> None:
    recipe_config, bundle = chain
    measured = read_finished(recipe_config.out / "vae")["latent_scale"]
    assert bundle.spec.gsvae["scaling_factor"] == measured["scaling_factor"] != 1.0
    assert bundle.spec.gsvae["shift_factor"] == measured["shift_factor"]
    stage = DiffusionStage(stages(recipe_config)[2])
    stage.build()
    latents = next(stage.stream(0, 1)).latents
    assert latents.mean().abs().item() < 0.3 and 0.6 < latents.std().item() < 1.5


def test_the_decoder_stage_changes_the_decoder_alone(chain: tuple[RecipeConfig, Bundle]) -> None:
    out = chain[0].out
    before, after = (load_file(out / name / "finished" / "gsvae.safetensors") for name in ("vae", "decoder"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in changed)
    assert read_finished(out / "decoder")["latent_scale"] == read_finished(out / "vae")["latent_scale"]


def test_the_tiny_decoder_is_trained_alone_and_lies_beside_the_other(chain: tuple[RecipeConfig, Bundle]) -> None:
    out, bundle = chain[0].out, chain[1]
    before, after = (load_file(out / name / "finished" / "gsvae.safetensors") for name in ("decoder", "tiny-decoder"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"tiny_decoder"}
    assert bundle.spec.gsvae["tiny_decoder"] == {"num_blocks": [1, 1, 1], "block_out_channels": [8, 8, 8]}
    gsvae = bundle_network(bundle, "gsvae")
    latents = torch.zeros(1, 4, TINY.latent_channels, TINY.latent_size, TINY.latent_size)
    assert gsvae.decode_tiny(latents).shape == gsvae.decode(latents).shape


def test_a_bundle_of_stages_that_do_not_belong_together_is_refused(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path
) -> None:
    runs = {name: config.run.out for name, config in chain[0].placed().items()}
    for network in ("recon", "vae", "diffusion"):  # each has another parent than the rest
        other = tmp_path / network
        shutil.copytree(runs[network] / "finished", other / "finished")
        facts = json.loads((other / "finished" / "finished.json").read_text())
        facts.update({"parents": {**facts.get("parents", {}), "vae": {}}, "recon": {}})
        if network == "recon":
            changed = {"gsrecon": ReconStage(chain[0].placed()["recon"]).build()}  # type: ignore[arg-type]
            save_finished(other, changed, facts, {})
        else:
            (other / "finished" / "finished.json").write_text(json.dumps(facts))
        mixed = {**runs, network: other}
        if network == "vae":
            mixed = {name: path for name, path in mixed.items() if name not in ("decoder", "tiny-decoder")}
        with pytest.raises(ValueError, match="trained on another GSRecon|must both be trained on the same latents"):
            bundle_runs(mixed, tmp_path / "bundle")
    with pytest.raises(ValueError, match="a bundle needs a denoiser; the networks of these sources are: gsrecon"):
        bundle_runs({"recon": runs["recon"]}, tmp_path / "bundle")
    with pytest.raises(ValueError, match="nowhere.*not the folder of a finished training stage"):
        bundle_runs({**runs, "more": tmp_path / "nowhere"}, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_the_same_from_its_runs_or_from_a_bundle_and_a_run(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path
) -> None:
    runs = {name: config.run.out for name, config in chain[0].placed().items()}
    del runs["tiny-decoder"]
    without = bundle_runs(runs, tmp_path / "without")
    assert "tiny_decoder" not in without.spec.gsvae
    again = bundle_runs({"bundle": without.root, "tiny-decoder": chain[0].out / "tiny-decoder"}, tmp_path / "again")
    assert again.digest == chain[1].digest and again.lineage["stages"] == chain[1].lineage["stages"]


def test_a_recipe_trains_parents_before_what_is_trained_on_them() -> None:
    made = recipe(Path("out"))
    swapped = dataclasses.replace(made, stages={name: made.stages[name] for name in ("vae", "recon")})
    with pytest.raises(ValueError, match="vae.recon: is trained on recon, which must come before it"):
        swapped.placed()
    placed = made.placed()
    assert placed["tiny-decoder"].vae == Path("out/decoder")  # type: ignore[attr-defined]
    assert placed["vae"].vae is None and placed["vae"].run.out == Path("out/vae")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("recon", signal.SIGTERM), ("vae", None), ("diffusion", signal.SIGINT), ("decoder", signal.SIGTERM),
        ("tiny-decoder", None),
    ],
)  # fmt: skip
def test_a_stage_that_is_resumed_in_the_middle_of_an_epoch_ends_with_the_same_bytes(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path, name: str, stop: signal.Signals | None
) -> None:
    """After a stop signal from its last step, without one from the checkpoint of step 8; an epoch has 6 batches."""
    check_resume(chain[0].placed()[name], tmp_path, 12, stop)


def test_a_finished_folder_is_compared_before_it_is_called_done(
    chain: tuple[RecipeConfig, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    recon, vae = (chain[0].placed()[name] for name in ("recon", "vae"))
    resumed = dataclasses.replace(recon.run, resume=True)
    assert run_stage(dataclasses.replace(recon, run=resumed)).step == STEPS
    assert f"stage recon has finished already, after {STEPS} steps" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="by stage recon, this run is of stage vae"):
        run_stage(dataclasses.replace(vae, run=resumed))
    with pytest.raises(CheckpointError, match="position_weight = 1.0, this run has 2.0"):
        run_stage(dataclasses.replace(recon, run=resumed, position_weight=2.0))


def test_a_loss_depends_on_its_batch_and_generator_alone(chain: tuple[RecipeConfig, Bundle]) -> None:
    for config in stages(chain[0]):
        stage = build_stage(config)
        torch.manual_seed(0)
        stage.build()
        batch = next(stage.stream(0, 1))
        first = stage.loss(batch, step_generator(0, 0, 5))[0].item()
        torch.manual_seed(1)  # the global generator plays no part
        assert stage.loss(batch, step_generator(0, 0, 5))[0].item() == first
        if not isinstance(stage, ReconStage):  # which draws nothing
            assert stage.loss(batch, step_generator(0, 1, 5))[0].item() != first


def test_dropped_captions_reach_the_text_encoder_as_the_empty_one(
    chain: tuple[RecipeConfig, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(stages(chain[0])[2], dropout_rate=0.5)
    stage = DiffusionStage(config)
    stage.build()
    seen: list[str] = []
    (tokenizer,) = stage.text.prompts.tokenizers
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda captions, *more: seen.extend(captions) or encode(captions, *more))
    stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 0))
    assert seen == [""] * 8


def test_training_the_denoiser_also_trains_the_text_encoder(chain: tuple[RecipeConfig, Bundle]) -> None:
    stage = DiffusionStage(dataclasses.replace(stages(chain[0])[2], dropout_rate=0.0))
    trained = stage.build()
    loss, _ = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 0))
    loss.backward()
    without = [name for name, p in trained.named_parameters() if p.grad is None]
    assert without == []
    assert stage.trained["text_encoder"].text_model.embeddings.token_embedding.weight.grad.abs().sum() > 0


def test_latents_are_encoded_once_and_again_for_other_objects(chain: tuple[RecipeConfig, Bundle]) -> None:
    config = stages(chain[0])[2]
    path = config.run.out / "latents" / "00-0000000.safetensors"
    written = path.stat().st_mtime_ns
    stage = DiffusionStage(config)
    stage.build()
    first = next(stage.stream(0, 1))
    assert path.stat().st_mtime_ns == written
    others = {other: other.stat().st_mtime_ns for other in path.parent.glob("*.safetensors") if other != path}
    path.unlink()  # as if interrupted: computed again, it is the same, and the rest stays
    stage = DiffusionStage(config)
    stage.build()
    again = next(stage.stream(0, 1))
    assert torch.equal(first.latents, again.latents) and torch.equal(first.plucker, again.plucker)
    assert first.captions == again.captions
    assert others and all(other.stat().st_mtime_ns == time for other, time in others.items())
    fewer = DiffusionStage(dataclasses.replace(config, data=dataclasses.replace(config.data, objects=8)))
    fewer.build()
    assert len(fewer._cache(False)) == 16  # not the file's 48


def test_ranks_see_other_objects(chain: tuple[RecipeConfig, Bundle]) -> None:
    stage = ReconStage(stages(chain[0])[0])
    uids = [next(stage.stream(rank, 2)).uids for rank in (0, 1)]
    assert not set(uids[0]) & set(uids[1])


def test_a_finished_chain_is_not_trained_again(chain: tuple[RecipeConfig, Bundle]) -> None:
    made = chain[0]
    with pytest.raises(ValueError, match="already holds a run"):
        run_recipe(made)
    before = records(made.out / "recon")
    assert run_recipe(dataclasses.replace(made, resume=True)).digest == chain[1].digest
    assert records(made.out / "recon") == before


def test_a_bundle_can_be_trained_further(chain: tuple[RecipeConfig, Bundle], tmp_path: Path) -> None:
    made, bundle = chain
    first = dataclasses.replace(made.placed()["diffusion"], optim=Optim(steps=4, lr=3e-3, warmup_steps=2))
    more = RefineConfig(bundle=bundle.root, out=tmp_path / "more", stage=first)
    refined = run_refinement(more)
    assert {name for name in bundle.files if refined.files[name] != bundle.files[name]} == {
        "denoiser.safetensors", "text_encoder.safetensors",
    }  # fmt: skip
    assert refined.spec == bundle.spec
    assert list(refined.lineage["stages"]) == list(bundle.lineage["stages"])
    runs = (made.out / "diffusion", tmp_path / "more" / "diffusion")
    before, after = ([record["loss"] for record in records(run) if "loss" in record] for run in runs)
    assert after[0] < 0.8 * before[0]  # it starts where the bundle ended
    with pytest.raises(ValueError, match="already holds a run"):
        run_refinement(more)
    assert run_refinement(dataclasses.replace(more, resume=True)).digest == refined.digest


@pytest.mark.parametrize(
    ("name", "changed"), [("recon", "gsrecon"), ("decoder", "gsvae"), ("tiny-decoder", "gsvae"), ("vae", None)]
)
def test_every_stage_of_a_bundle_can_be_trained_further(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path, name: str, changed: str | None
) -> None:
    made, bundle = chain
    config = dataclasses.replace(made.placed()[name], optim=Optim(steps=1, warmup_steps=0))
    more = RefineConfig(bundle=bundle.root, out=tmp_path, name=name, stage=config)
    if changed is None:  # its latents are no longer those of the bundle's denoiser
        with pytest.raises(ValueError, match="must both be trained on the same latents"):
            run_refinement(more)
        return
    refined = run_refinement(more)
    assert [file for file in bundle.files if refined.files[file] != bundle.files[file]] == [f"{changed}.safetensors"]
    assert refined.spec == bundle.spec


def test_a_bundle_is_not_trained_further_as_another_backbone(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path
) -> None:
    config = RefineConfig(bundle=chain[1].root, out=tmp_path / "more", stage=DiffusionConfig(backbone="pico"))
    with pytest.raises(ValueError, match="is of backbone tiny, not pico"):
        run_refinement(config)
    bundle = chain[1].root
    other = dataclasses.replace(chain[0].placed()["diffusion"], recon=bundle, vae=bundle, start=bundle, backbone="pico")
    with pytest.raises(ValueError, match="was trained with another spec"):
        build_stage(other)


@pytest.mark.parametrize("grammar", ["basic", "rich"])
def test_bfloat16_gives_the_same_losses_roughly(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path, grammar: Literal["basic", "rich"]
) -> None:
    """Mixed precision and the rich objects go through every stage that has them."""
    for config in stages(chain[0])[1:]:
        losses = []
        for precision in ("none", "bf16"):
            stage = build_stage(
                dataclasses.replace(
                    config,
                    optim=dataclasses.replace(config.optim, precision=precision),
                    data=dataclasses.replace(config.data, grammar=grammar, objects=8),
                    run=dataclasses.replace(config.run, out=tmp_path),
                )
            )
            torch.manual_seed(0)
            stage.build()
            loss, _ = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 5))
            loss.backward()
            losses.append(loss.item())
        assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1.0) < 0.03


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VaeConfig(recon=Path("nowhere")), "nowhere.*not the folder of a finished training stage"),
        (ReconConfig(backbone="huge"), "backbone = 'huge' must be one of"),
        (ReconConfig(data=Data(batch_size=0)), r"data.batch_size = 0 must lie in \[1, 1024\]"),
        (ReconConfig(optim=Optim(steps=10, warmup_steps=11)), r"optim.warmup_steps = 11 must lie in \[0, 10\]"),
        (ReconConfig(optim=Optim(max_grad_norm=0.0)), "optim.max_grad_norm = 0.0 must be greater than 0"),
        (VaeConfig(part="decoder"), "vae is not set: part = 'decoder' needs the finished run"),
        (DiffusionConfig(dropout_rate=0.6), r"dropout_rate = 0.6 must lie in \[0.0, 0.5\]"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    config: StageConfig, message: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, run=RunOptions(out=tmp_path / "run", threads=1))
    with pytest.raises(ValueError, match=message):
        run_stage(config)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_denoiser_refuses_an_autoencoder_of_another_reconstruction(
    chain: tuple[RecipeConfig, Bundle], tmp_path: Path
) -> None:
    recon, diffusion = (chain[0].placed()[name] for name in ("recon", "diffusion"))
    other = dataclasses.replace(
        recon, run=dataclasses.replace(recon.run, out=tmp_path, seed=1), optim=Optim(steps=1, warmup_steps=0)
    )
    run_stage(other)
    with pytest.raises(ValueError, match="was trained on another recon stage"):
        build_stage(dataclasses.replace(diffusion, recon=tmp_path))


def test_a_vae_of_a_damaged_reconstruction_is_refused(chain: tuple[RecipeConfig, Bundle], tmp_path: Path) -> None:
    vae = stages(chain[0])[1]
    finished = tmp_path / "finished"
    finished.mkdir()
    for file in (chain[0].out / "recon" / "finished").iterdir():
        (finished / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".safetensors" else None])
    with pytest.raises(CheckpointError, match="gsrecon.safetensors"):
        VaeStage(dataclasses.replace(vae, recon=tmp_path))
