"""`python -m training evaluate`: figures of a bundle, what judges them, and what is said of absent judges."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPModel

from tests.families import tokenizer_json
from training.__main__ import main
from training.evaluation.judges import ClipJudge, open_judges
from training.evaluation.metrics import frechet_distance, image_psnr, image_ssim, text_alignment

ROOT = Path(__file__).parents[2]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_follows_its_formula() -> None:
    first, second = noise(0, 40, 5), noise(1, 30, 5) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]) + 0.3
    difference = (first.double().mean(0) - second.double().mean(0)).numpy()
    covariances = [np.cov(features.double().numpy(), rowvar=False) for features in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)
    few = noise(2, 3, 64)  # fewer samples than features
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(few, few + 1.0) == pytest.approx(64.0)
    with pytest.raises(ValueError, match="1 samples, a covariance needs at least 2"):
        frechet_distance(few[:1], few)


def test_figures_of_equal_images_are_perfect() -> None:
    images = noise(0, 3, 3, 16, 16)
    assert image_psnr(images, images).mean == pytest.approx(100.0)
    assert image_ssim(images, images) == pytest.approx((1.0, 0.0))
    assert image_psnr(images[:1], images[:1]).std == 0.0


def test_a_prompt_is_found_among_all_prompts() -> None:
    texts = torch.eye(4)
    aligned = text_alignment(3.0 * texts, texts)
    assert aligned == (pytest.approx(1.0), 1.0)
    assert text_alignment(texts.flip(0), texts) == (pytest.approx(0.0), 0.0)


def test_a_bundle_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(ROOT / "bundles" / "pico"), "--out", str(tmp_path), "--data.validation-objects", "2"]
    command += ["--data.views", "5", "--data.pool-size", "1", "--prompts", "2", "--steps", "2"]
    assert main(command) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["backbone"] == "pico" and report["objects"] == 2
    for suite in ("recon_input", "recon_novel", "vae_input", "vae_novel"):
        assert report["views"][suite].keys() >= {"psnr_db", "ssim", "effnet-feature"}
    recon, vae = (report["views"][f"{name}_input"] for name in ("recon", "vae"))
    assert recon["psnr_db"]["mean"] > vae["psnr_db"]["mean"] > 15
    assert 0 < recon["effnet-feature"]["mean"] < vae["effnet-feature"]["mean"]
    assert report["text"]["prompts"] == 2 and report["text"]["effnet-feature_frechet"] > 0
    assert report["not_measured"].keys() >= {"clip", "image_reward"}
    printed = capsys.readouterr().out
    assert "views: recon_novel: psnr_db" in printed and "not measured: clip: set --clip" in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 5 * 32 * 3  # five views of 32 px, enlarged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "source = nowhere: no such folder"),
        (["bundles/pico", "--data.validation-objects", "0"], r"data.validation_objects = 0 must lie in \[1,"),
        (["bundles/pico", "--clip", "nowhere"], "clip = nowhere: not a CLIP model"),
        (["tests", "--backbone", "pico"], "not the folder of a finished training stage"),
        (["tests"], "a run needs one of"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    options = [] if "--data.validation-objects" in arguments else ["--data.validation-objects", "1"]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_clip_judges_from_a_folder(tmp_path: Path) -> None:
    """A tiny CLIP with random weights: its images and prompts are embedded and compared."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = json.loads(tokenizer_json("clip"))["model"]
    ends = {"bos_token_id": len(vocabulary["vocab"]) - 2, "eos_token_id": len(vocabulary["vocab"]) - 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(vocabulary["vocab"]), "max_position_embeddings": 12},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"])
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    judge = ClipJudge(tmp_path, "cpu")
    images = noise(0, 2, 3, 32, 32)
    aligned = judge.align(images, ["a small red cube", "two blue spheres"])
    assert -1 <= aligned.similarity <= 1 and aligned.r_precision in (0.0, 0.5, 1.0)
    assert judge.align(images, ["a small red cube", "two blue spheres"]) == aligned
    assert judge.align(images, ["two blue spheres", "a small red cube"]).similarity != aligned.similarity


def test_image_reward_needs_its_package_and_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package cannot be installed beside present libraries, so its interface stands in for it here."""
    weights = tmp_path / "ImageReward.pt"
    with pytest.raises(ValueError, match="needs the package image-reward"):
        open_judges(None, weights)

    class Model:
        def score(self, prompt: str, image: Image.Image) -> float:
            return len(prompt) + image.size[0] / 1000

    package = types.ModuleType("ImageReward")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    package.load = lambda path, device: Model()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    with pytest.raises(ValueError, match="ImageReward.pt: no such file"):
        open_judges(None, weights)
    weights.touch()
    judges = open_judges(None, weights)
    assert judges.reward is not None and "image_reward" not in judges.missing
    assert judges.reward.mean(noise(0, 2, 3, 8, 8), ["ab", "abcd"]) == pytest.approx(3.008)
