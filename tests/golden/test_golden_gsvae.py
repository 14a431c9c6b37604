"""GSVAE with the reference's weights: initialisation, both directions, tiny decoder; and latents to Gaussians."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply_compat import RECORD, encode_published
from diffusers import AutoencoderKL, AutoencoderTiny

from diffsplat.backbones import SD15
from diffsplat.geometry.cameras import generated_view_cameras, world_to_camera
from diffsplat.geometry.gaussians import GRID_LAYOUT, grid_to_gaussians
from diffsplat.splats.gsvae import widen_from_image_vae
from tests.golden.gsvae_files import build_golden_gsvae, options_of

PARTS = ["gsvae_sd", "gsvae_sdxl", "gsvae_sd3"]
REFERENCE_NAMES = {"rgb": "rgb", "scale": "scale", "rotation": "quat_wxyz", "opacity": "opacity", "depth": "depth"}


@pytest.mark.parametrize("part", PARTS)
def test_widening(golden, assert_close, part):
    """The reference's initialisation from an image autoencoder."""
    file = golden(part)
    given, expected = file.case_in("init"), file.out("init")
    gsvae = build_golden_gsvae(file.config)
    vae_state = AutoencoderKL(**options_of(file.config["vae_config"])).state_dict()
    vae_state["encoder.conv_in.weight"] = given["base_encoder_conv_in_weight"]
    vae_state["encoder.conv_in.bias"] = given["base_encoder_conv_in_bias"]
    vae_state["decoder.conv_out.weight"] = given["base_decoder_conv_out_weight"]
    vae_state["decoder.conv_out.bias"] = given["base_decoder_conv_out_bias"]
    tiny_state, end = None, None
    if gsvae.tiny_decoder is not None:
        tiny_state = AutoencoderTiny(**options_of(file.config["tiny_config"])).state_dict()
        end = gsvae.tiny_decoder.layers[-1]
        tiny_state[f"decoder.layers.{len(gsvae.tiny_decoder.layers) - 1}.weight"] = given["base_tiny_out_weight"]
        tiny_state[f"decoder.layers.{len(gsvae.tiny_decoder.layers) - 1}.bias"] = given["base_tiny_out_bias"]
    widen_from_image_vae(gsvae, vae_state, tiny_state)
    assert_close(gsvae.vae.encoder.conv_in.weight, expected["encoder_conv_in_weight"], "encoder_conv_in_weight")
    assert_close(gsvae.vae.encoder.conv_in.bias, expected["encoder_conv_in_bias"], "encoder_conv_in_bias")
    assert_close(gsvae.vae.decoder.conv_out.weight, expected["decoder_conv_out_weight"], "decoder_conv_out_weight")
    assert_close(gsvae.vae.decoder.conv_out.bias, expected["decoder_conv_out_bias"], "decoder_conv_out_bias")
    if end is not None:
        assert_close(end.weight, expected["tiny_conv_out_weight"], "tiny_conv_out_weight")
        assert_close(end.bias, expected["tiny_conv_out_bias"], "tiny_conv_out_bias")
    assert gsvae.scaling_factor == pytest.approx(expected["scaling_factor"].item())
    assert gsvae.shift_factor == pytest.approx(expected["shift_factor"].item())


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_both_directions(golden, assert_close, part):
    file = golden(part)
    gsvae = build_golden_gsvae(file.config)
    gsvae.load_state_dict(file.weights("gsvae"))

    grid = file.case_in("encode")["gs"][None]  # views of one object
    expected = file.out("encode")
    posterior = gsvae.posterior(grid)
    assert_close(posterior.mean[0], expected["latents_mode"], "latents_mode")
    assert_close(posterior.log_variance[0], expected["logvar"], "logvar")
    assert_close(posterior.kl().mean(), expected["kl_mean"], "kl_mean")
    assert_close(gsvae.encode(grid)[0], expected["scaled_latents"], "scaled_latents")
    noise = file.case_in("encode_sample")["noise"][None]
    assert_close(posterior.sample(noise)[0], file.out("encode_sample")["latents"], "encode_sample")

    def scaled(latents: torch.Tensor) -> torch.Tensor:
        return (gsvae.scaling_factor * (latents - gsvae.shift_factor))[None]

    assert_close(gsvae.decode(scaled(file.case_in("decode")["z"]))[0], file.out("decode")["gs"], "decode")
    assert ("decode_tiny" in file.cases) == (gsvae.tiny_decoder is not None)
    if gsvae.tiny_decoder is not None:
        tiny = gsvae.decode_tiny(scaled(file.case_in("decode_tiny")["z"]))
        assert_close(tiny[0], file.out("decode_tiny")["gs"], "decode_tiny")
    for name, reference in file.out("decode_gslatents").items():
        latents = scaled(file.case_in("decode_gslatents")["latents"])[0].unflatten(0, reference.shape[:2])
        part_of_grid = gsvae.decode(latents)[:, :, GRID_LAYOUT[REFERENCE_NAMES[name]]]
        assert_close(part_of_grid, reference, f"decode_gslatents/{name}")


@torch.no_grad()
def test_latents_to_gaussians(golden, assert_close):
    """From the sampler's last latents to every number that the rasterizer gets."""
    file = golden("e2e_latents_to_gaussians")
    config = file.config
    gsvae = build_golden_gsvae(config)
    gsvae.load_state_dict(file.weights("gsvae"))
    scales = {name: config["opt"][name] for name in ("scale_min", "scale_max") if name in config["opt"]}
    geometry = replace(SD15.geometry, **scales)
    for case in file.cases:
        expected = file.out(case)
        latents = file.case_in(case)["latents_from_pipeline"][None]
        views = latents.shape[1]
        unscaled = latents / gsvae.scaling_factor + gsvae.shift_factor
        assert_close(unscaled[0], expected["unscaled_latents"], "unscaled_latents")

        cameras = generated_view_cameras(config["elevation_user_deg"], config["distance"], views)
        assert_close(cameras.camera_to_world, expected["C2W"], "C2W")
        assert_close(world_to_camera(cameras.camera_to_world).mT, expected["viewmatrix"], "viewmatrix")
        gaussians = grid_to_gaussians(gsvae.decode(latents), cameras, geometry, config["opacity_threshold"])
        assert_close(gaussians.means[0], expected["xyz"], "xyz")
        assert_close(gaussians.rgbs[0], expected["rgb"], "rgb")
        assert_close(gaussians.scales[0], expected["scale"], "scale")
        assert_close(gaussians.opacities[0, :, None], expected["opacity"], "opacity")
        assert_close(gaussians.quats_wxyz[0], expected["rotation"], "rotation")

        columns = [values[0].numpy() for values in gaussians]
        ply = encode_published(SplatCloud(*columns).threshold(config["opacity_threshold_ply"]))
        reference = expected["ply_file"].numpy().tobytes()
        header = reference.index(b"end_header\n") + len(b"end_header\n")
        assert ply[:header] == reference[:header]
        ours, theirs = (np.frombuffer(data, RECORD, offset=header) for data in (ply, reference))
        for name in RECORD.names:
            actual, wanted = (torch.from_numpy(records[name].astype(np.float64)) for records in (ours, theirs))
            if RECORD[name] == np.uint8:  # truncated, so that round-off may move it by one
                assert (actual - wanted).abs().max() <= 1, f"ply/{name}"
            elif name == "opacity":  # near 0 and 1 the logit magnifies the round-off of the decoder without bound
                assert_close(actual.sigmoid(), wanted.sigmoid(), "ply/opacity")
            else:
                assert_close(actual, wanted, f"ply/{name}")
