"""Which reference files are tested, and a named skip for every file whose part is not built yet."""

from pathlib import Path

import pytest
from safetensors import safe_open

# part -> the module that tests it
BUILT = {
    "build_gaussians": "instant3d",
    "camera_chain": "cameras",
    "controlnet": "controlnet",
    "dinov2_backbone": "elevest",
    "e2e_latents_to_gaussians": "gsvae",
    "elevest_head": "elevest",
    "ema_lr": "ema_lr",
    "geometry": "cameras",
    "gsrecon_inputs": "gsrecon",
    "gsrecon_llama": "gsrecon",
    "gsrecon_plain": "gsrecon",
    "gsvae_sd": "gsvae",
    "gsvae_sd3": "gsvae",
    "gsvae_sdxl": "gsvae",
    "image_preprocess": "images",
    "pipe_pixart_alpha_text": "pixart_pipe",
    "pipe_pixart_sigma_image": "pixart_pipe",
    "pipe_pixart_sigma_text": "pixart_pipe",
    "pipe_sd3_image": "sd3_pipelines",
    "pipe_sd3_text": "sd3_pipelines",
    "pipe_controlnet": "pipe_unet",
    "pipe_sd_image": "pipe_unet",
    "pipe_sd_instant3d_init": "pipe_unet",
    "pipe_sd_text": "pipe_unet",
    "pipe_sdxl_text": "pipe_unet",
    "pixart_alpha": "pixart",
    "pixart_sigma": "pixart",
    "ply": "ply",
    "rembg_center": "images",
    "renderer": "renderer",
    "scheduler_steps": "samplers",
    "schedules": "samplers",
    "sd35m": "sd3",
    "sd3m": "sd3",
    "text_encoding": "text_encoding",
    "unet_sd_image": "unet",
    "unet_sd_text": "unet",
    "unet_sdxl": "unet",
}


def test_every_file_has_a_test(golden_path: Path, golden):
    with safe_open(golden_path, "pt") as file:
        part = file.metadata().get("part", golden_path.stem)
    if part not in BUILT:
        pytest.skip(f"part {part} is not built yet")
    module = Path(__file__).with_name(f"test_golden_{BUILT[part]}.py")
    assert f'"{part}"' in module.read_text(), f"{module.name} does not open {part}"
    assert golden(part).path == golden_path, f"only one file of part {part} is read, and it is not this one"
