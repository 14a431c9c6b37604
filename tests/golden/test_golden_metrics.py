"""Figures of the evaluation equal the reference's. LPIPS is a stand-in there, and no output of its has to be equal."""

import torch

from training.evaluation.metrics import image_psnr, image_ssim, text_alignment


def test_image_figures(golden, assert_close):
    file = golden("metrics")
    given, expected = file.case_in("image"), file.out("image")
    for measure, name in ((image_psnr, "psnr_mean_std"), (image_ssim, "ssim_mean_std")):
        figure = torch.tensor(measure(given["pred"], given["gt"]), dtype=torch.float64)
        # mean and deviation one by one: the deviation is far smaller
        for ours, theirs, what in zip(figure, expected[name], ("mean", "std"), strict=True):
            assert_close(ours, theirs, f"{name}: {what}")


def test_text_figures(golden, assert_close):
    file = golden("metrics")
    given, expected = file.case_in("text"), file.out("text")
    aligned = text_alignment(given["image_embeds"], given["text_embeds"])
    assert_close(torch.tensor(aligned.similarity, dtype=torch.float64), expected["clip_sim"], "clip_sim")
    assert_close(torch.tensor(aligned.r_precision, dtype=torch.float64), expected["clip_r_precision"], "r_precision")
    assert_close(given["reward"].double().mean(), expected["image_reward_mean"], "image_reward_mean")
