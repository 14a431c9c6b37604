"""Every command of the published training section has a preset that starts, stops, resumes and is exported.

The presets run in the published order, each on the runs before it, from tiny base models in the official layout; the
table of docs/training.md names all of them.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import AutoencoderTiny

import training.stages.diffusion
import training.stages.vae
from diffsplat.backbones import BACKBONES
from tests.families import family_spec
from training.__main__ import main
from training.assemble import bundle_runs
from training.checkpoint import read_finished
from training.config.common import Cadence, Data, Optim, RunOptions, StageConfig
from training.loop import train
from training.presets import GROUPS
from training.presets.encode_text import ENCODE_TEXT
from training.presets.published import AUTOENCODERS, DENOISERS, GSDIFFS, GSRECON, GSVAES
from training.recipe import run_stage, stage_lineage
from training.stages import build_stage
from training.stages.common import dataset

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
STEPS = 2
DATA = Data(objects=2, validation_objects=1, batch_size=1, views=5, pool_size=1, first_views=(0,), workers=0)
PRESETS: dict[str, Any] = {name: config for group in GROUPS.values() for name, (_, config) in group.items()}
COMMANDS = re.findall(r"^\| (`train_\w+\.py`[^|]*) \| `([\w-]+)` \| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
FAMILIES = ("sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35")


class Killed(Exception):
    """Stands for a power cut."""


class Workshop(NamedTuple):
    """Where the commands run."""

    root: Path
    base_model: Callable[[str], Path]

    def run_of(self, published: Path) -> Path:
        """The place of a run that a preset names."""
        return self.root / published

    def shrunken(self, config: StageConfig) -> StageConfig:
        """A preset on a tiny backbone, from tiny base models, for two steps on two objects."""
        name = config.backbone.removesuffix("_image")
        changes: dict[str, Any] = {
            "backbone": f"tiny_{config.backbone}",
            "data": DATA,
            "optim": dataclasses.replace(config.optim, steps=STEPS, epochs=0, warmup_steps=0, accumulation=1),
            "cadence": Cadence(log_every=1, evaluate_every=STEPS, save_every=1),
            "run": RunOptions(out=self.run_of(config.run.out), threads=1),
        }
        if config.preset.endswith(("-image", "-render")):  # the families have shown bf16 and checkpointing by then
            changes["optim"] = dataclasses.replace(changes["optim"], precision="none", gradient_checkpointing=False)
        for field in ("recon", "vae", "start", "text_store"):
            value = getattr(config, field, None)
            if isinstance(value, Path):
                changes[field] = self.base_model(name) if value.parts[0] == "models" else self.run_of(value)
        if isinstance(getattr(config, "base", None), Path):
            changes["base"] = self.base_model(name)
        if getattr(config, "tiny_base", None) is not None:
            changes |= {"tiny_base": self.tiny_autoencoder(name), "tiny_width": 8, "tiny_blocks": 1}
        if hasattr(config, "evaluation_steps"):
            changes |= {"evaluation_steps": 1, "evaluation_guidance": config.evaluation_guidance[:1]}
        return dataclasses.replace(config, **changes)

    def tiny_autoencoder(self, name: str) -> Path:
        """A tiny autoencoder of an image model, as taesd and its like are published."""
        folder = self.root / f"tae_{name}"
        if not folder.is_dir():
            widths, blocks = (8, 8, 8), (1, 1, 1)
            tiny: Any = AutoencoderTiny(
                encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks,
                num_decoder_blocks=blocks, latent_channels=BACKBONES[f"tiny_{name}"].latent_channels,
            )  # fmt: skip
            tiny.save_pretrained(folder)
        return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, base_model: Callable[[str], Path]) -> Iterator[Workshop]:
    """Tiny backbones under names of their own, text embeddings of all objects, and no more measuring than needed."""
    made = Workshop(tmp_path_factory.mktemp("published"), base_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.stages.vae, "_MEASURED_BATCHES", 1)
        patch.setattr(training.stages.diffusion, "EVALUATED_TIMES", 1)
        for name in FAMILIES:
            for spec in (family_spec(name), family_spec(f"{name}_image")):
                patch.setitem(BACKBONES, spec.name, spec)
        yield made


def finish(config: StageConfig) -> dict[str, Any]:
    """Start a stage, cut its power in the second step, resume it, and read what it leaves."""
    stage = build_stage(config)
    train_loss = stage.loss

    def loss(batch: Any, generator: torch.Generator) -> Any:
        if stage.updates == 1:
            raise Killed
        return train_loss(batch, generator)

    stage.loss = loss  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(stage, config, stage_lineage(config))
    assert not (config.run.out / "finished").exists()
    outcome = run_stage(dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True)))
    assert outcome.finished and outcome.step == STEPS
    return read_finished(config.run.out)


def encode_text(workshop: Workshop, option: str) -> None:
    """`encode-text/OPTION` on the captions of the objects."""
    preset = ENCODE_TEXT[f"encode-text/{option}"]
    captions = workshop.root / "captions.csv"
    if not captions.is_file():
        with captions.open("w", newline="") as file:
            for validation in (False, True):
                source = dataset(DATA, "tiny_sd15", validation).source
                rows = ((source.uid(index), source.caption(index, None)) for index in range(len(source)))
                csv.writer(file).writerows(rows)
    command = ["--backbone", f"tiny_{preset.backbone}", "--encoders", str(workshop.base_model(preset.backbone))]
    command += ["--captions", str(captions), "--out", str(workshop.run_of(preset.out)), "--threads", "1"]
    assert main([preset.preset, *command, "--precision", "fp32"]) == 0


def test_all_22_published_commands_and_8_text_encoders_run(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for option in ("sd15", "sd21", "sdxl", "paa", "pas", "sd3m", "sd35m"):
        encode_text(workshop, option)
        rows.append((f"encode_prompt_embeds.py {option}", f"encode-text/{option}", "captions of 3 objects"))
    assert main(["encode-text/sd35l"]) == 1
    refusal = capsys.readouterr().err
    assert "nobody published a DiffSplat network" in refusal
    rows.append(("encode_prompt_embeds.py sd35l", "encode-text/sd35l", "refused by name"))
    for published, preset, _ in COMMANDS:
        facts = finish(workshop.shrunken(PRESETS[preset]))
        networks = [name.partition(".")[0] for name in facts["files"] if name.endswith(".safetensors")]
        assert networks
        rows.append((published.replace("`", ""), preset, f"{facts['steps']} steps, {', '.join(networks)}"))
    with capsys.disabled():
        print()
        for row in rows:
            print(f"{row[0]:75} {row[1]:26} {row[2]}")
    assert len(COMMANDS) == 22 and len(rows) == 30


def test_a_bundle_comes_of_published_commands(workshop: Workshop, tmp_path: Path) -> None:
    """GSRecon, the tiny decoder's GSVAE, a denoiser and its ControlNet; text encoders are the base model's."""
    if not workshop.run_of(PRESETS["controlnet-depth"].run.out).is_dir():
        pytest.skip("runs after the published commands, on what they leave")
    names = ("gsrecon", "gsvae-tiny", "gsdiff-sd15-render", "controlnet-depth")
    sources = {name: workshop.run_of(PRESETS[name].run.out) for name in names}
    bundle = bundle_runs({**sources, "base": workshop.base_model("sd15")}, tmp_path / "bundle")
    assert bundle.spec.controls == ("depth",) and bundle.spec.gsvae["tiny_decoder"]
    assert {name.partition(".")[0].partition("-0")[0] for name in bundle.files} == {
        "gsrecon", "gsvae", "denoiser", "controlnet_depth", "text_encoder", "tokenizer",
    }  # fmt: skip
    other = {**sources, "gsvae-tiny": workshop.run_of(PRESETS["gsvae-sdxl-fp16-tiny"].run.out)}
    with pytest.raises(ValueError, match="must both be trained on the same latents"):
        bundle_runs({**other, "base": workshop.base_model("sd15")}, tmp_path / "other")


def test_presets_carry_the_published_hyper_parameters() -> None:
    """Batches of 8 processes, learning rates, lengths."""
    published: dict[str, StageConfig] = {"gsrecon": GSRECON, **GSVAES, **GSDIFFS}
    assert len(GSVAES) == 2 * len(AUTOENCODERS) == 6 and len(GSDIFFS) == 4 * len(DENOISERS) == 28
    for name, config in published.items():
        assert config.preset == name and config.run.out == Path("runs") / name
        optim: Optim = config.optim
        per_update = 8 * config.data.batch_size * optim.accumulation
        objects = 83_296 if name.startswith("gsdiff") else 265_232
        updates = -(-(objects // (8 * config.data.batch_size)) // optim.accumulation) * optim.epochs
        assert optim.warmup_steps == 1000 and config.cadence.save_every == 2000
        if name.startswith("gsdiff"):
            assert per_update == 128 and (optim.lr, optim.betas, optim.weight_decay) == (1e-4, (0.9, 0.999), 0.01)
            assert optim.schedule == "constant" and optim.ema and optim.steps == updates
            assert config.rendering.probability == name.endswith("render")  # type: ignore[attr-defined]
        else:
            assert per_update == 64 and (optim.lr, optim.betas, optim.weight_decay) == (4e-4, (0.9, 0.95), 0.05)
            assert optim.schedule == "cosine" and not optim.ema
            assert updates in (124_320, 124_350)  # 30 epochs, with and without accumulation
        config.check()
    gammas = {name: config.rendering.min_snr_gamma for name, config in GSDIFFS.items() if name.endswith("render")}
    assert {name for name, gamma in gammas.items() if gamma} == {
        f"gsdiff-{option}{kind}-render" for option in ("pas", "paa") for kind in ("", "-image")
    }


def test_every_published_preset_is_listed_and_in_the_docs() -> None:
    text = DOCS.read_text()
    assert len(COMMANDS) == len({preset for _, preset, _ in COMMANDS}) == 22
    for _, preset, _ in COMMANDS:
        assert preset in PRESETS
    for option in ENCODE_TEXT:
        assert f"`{option}`" in text
    for name in (*GSVAES, *GSDIFFS, "elevest"):
        stem = re.sub(r"(-image)?(-render)?$", "", name)
        assert f"`{name}`" in text or f"`{stem}`" in text
