"""The command line: presets, strict options, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.presets import GROUPS, RECIPES, STAGES

TINY_RUN = [
    "--data.objects", "4", "--data.validation-objects", "2", "--data.batch-size", "2", "--optim.steps", "2",
    "--optim.warmup-steps", "1", "--run.threads", "1",
]  # fmt: skip


def test_help_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for title, group in GROUPS.items():
        assert f"\n{title}:\n" in printed
        for name, (description, _) in group.items():
            assert f"  {name} " in printed and description in printed


def test_help_does_not_load_the_networks() -> None:
    """They take seconds."""
    ask = "import sys; from training.__main__ import read_command\ntry: read_command(['--help'])\nexcept SystemExit: "
    report = "print({'training.run', 'diffusers', 'transformers', 'scipy'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask + report], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pico/reconn"], "pico/reconn"),
        (["pico/recon", "--optim.learning-rate", "1"], "--optim.learning-rate"),
        (["pico/recon", "--optim.steps", "many"], "many"),
        (["pico", "--vae.optim.schedule", "triangle"], "triangle"),
        ([], "pico/recon"),
    ],
)
def test_unknown_presets_options_and_values_are_errors(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert named in "".join(capsys.readouterr())


def test_a_stage_runs_and_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pico/recon", "--run.out", str(tmp_path / "recon"), *TINY_RUN]
    assert main(command) == 0
    assert (tmp_path / "recon" / "finished" / "gsrecon.safetensors").is_file()
    capsys.readouterr()
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: run.out = ") and "already holds a run" in error and error.count("\n") == 1


def test_a_stage_without_the_one_before_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pico/vae", "--recon", str(tmp_path / "none"), "--run.out", str(tmp_path / "vae"), *TINY_RUN]
    assert main(command) == 1
    assert "is not the folder of a finished training stage" in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()


def test_the_pico_recipe_trains_exactly_the_stage_presets() -> None:
    recipe = RECIPES["pico"][1]
    assert list(recipe.stages) == ["recon", "vae", "diffusion", "decoder", "tiny-decoder"]
    for name, config in recipe.stages.items():
        assert config is STAGES[f"pico/{name}"][1]
        assert recipe.placed()[name] == config  # the presets' folders are the recipe's
