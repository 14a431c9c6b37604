"""A denoiser of each family starts from a tiny base model in the official layout, steps, resumes and is exported."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffsplat.backbones import BACKBONES
from tests.training.finished import DIFFUSION_STEPS
from training.checkpoint import read_finished
from training.config.diffusion import DiffusionConfig
from training.loop import train
from training.official import FIRST_LAYERS
from training.recipe import run_stage, stage_lineage
from training.stages.diffusion import DiffusionStage


def killed_and_resumed(config: DiffusionConfig, step: int) -> None:
    """Run a stage that dies in step `step`, counted from 1, and continue it."""

    class Killed(Exception):
        pass

    class Interrupted(DiffusionStage):
        calls = 0

        def loss(self, batch, generator):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.calls == step:
                raise Killed
            return super().loss(batch, generator)

    with pytest.raises(Killed):
        train(Interrupted(config), config, stage_lineage(config))
    assert run_stage(dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True))).finished


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma", "sd35"])  # the table of published commands runs all of them
def test_a_base_model_starts_steps_resumes_and_is_exported(
    name: str, diffusion_config: Callable[..., DiffusionConfig], tmp_path: Path
) -> None:
    whole, resumed = (diffusion_config(name, tmp_path / run) for run in ("whole", "resumed"))
    run_stage(whole)
    killed_and_resumed(resumed, DIFFUSION_STEPS)
    weights = [(run.run.out / "finished" / "denoiser.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    facts, spec = read_finished(whole.run.out), BACKBONES[f"tiny_{name}"]
    assert facts["spec"]["name"] == spec.name and facts["text"]["kind"] == "frozen"
    assert {"mse", "mse_no_text"} <= set(facts["metrics"])
    assert list((whole.run.out / "panels").glob("*.png"))
    assert not (whole.run.out / "finished" / "text_encoder.safetensors").exists()
    first = load_file(whole.run.out / "finished" / "denoiser.safetensors")[FIRST_LAYERS[spec.family]]
    assert first[:, spec.latent_channels :].any()  # the rays are read by now
