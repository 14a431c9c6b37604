"""Initial weights of a GSVAE."""

import dataclasses
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsvae import GSVAE, build_gsvae, build_tiny_decoder, widen_from_image_vae, widen_tiny_decoder
from export.importing.check import check_vae_config
from training.config.vae import VaeConfig
from training.official import autoencoder_folder, autoencoder_state
from training.parents import Parent

_FIRST_LOG_VARIANCE = -6.0
_AVERAGED = ("rgb", "opacity", "depth", "scale")  # the visible channels; the rotation of small splats hardly is


def autoencoder_spec(spec: BackboneSpec, config: VaeConfig, start: Mapping[str, Any] | None) -> BackboneSpec:
    """The backbone with the autoencoder that a run builds.

    A tiny decoder belongs to it once one is trained, until the latents change. The scale of the latents is that of the
    run that they come from.

    Args:
        spec: The backbone.
        config: What is trained.
        start: Facts of the run that it starts from.
    """
    gsvae = dict(spec.gsvae)
    tiny = gsvae.pop("tiny_decoder", None)
    if start is not None and config.part != "all":
        gsvae |= start["latent_scale"]
        if config.part == "tiny" or start.get("tiny_decoder"):
            levels = len(gsvae["block_out_channels"])
            chosen = {
                "num_blocks": [config.tiny_blocks] * (levels - 1) + [1],
                "block_out_channels": [config.tiny_width] * levels,
            }
            gsvae["tiny_decoder"] = start.get("tiny_decoder") or tiny or chosen
    return dataclasses.replace(spec, gsvae=gsvae)


def start_gsvae(spec: BackboneSpec, config: VaeConfig, start: Parent | None) -> GSVAE:
    """GSVAE with the weights that a run starts from, all of them trainable.

    Args:
        spec: `autoencoder_spec` of the run.
        config: Names the base models.
        start: The earlier run, if there is one.

    Raises:
        ValueError: weights are missing or do not fit; the message names the folder.
    """
    tiny = spec.gsvae.get("tiny_decoder")
    held = None if start is None else start.facts.get("tiny_decoder")
    gsvae = build_gsvae(_with_tiny_decoder(spec, held))
    if start is not None:
        _load_start(gsvae, spec, start, config.adapt)
    elif config.base is not None:
        check_vae_config(spec, autoencoder_folder(config.base) / "config.json")
        state = autoencoder_state(config.base, "AutoencoderKL")
        _load_base(config.base, lambda: widen_from_image_vae(gsvae, state))
    else:
        if config.first_weights == "average":
            start_as_average(gsvae)
        start_almost_deterministic(gsvae)
    if tiny is None:
        gsvae.tiny_decoder = None
    elif gsvae.tiny_decoder is None:
        gsvae.tiny_decoder = build_tiny_decoder(spec.gsvae["latent_channels"], tiny)
    if config.tiny_base is not None:
        decoder = gsvae.tiny_decoder
        assert decoder is not None
        tiny_state = autoencoder_state(config.tiny_base, "AutoencoderTiny")
        _load_base(config.tiny_base, lambda: widen_tiny_decoder(decoder, tiny_state))
    return gsvae


def _load_start(gsvae: GSVAE, spec: BackboneSpec, start: Parent, adapt: bool) -> None:
    """The weights of the earlier run; its number of latent channels may differ where the latents become others."""
    moments: dict[str, list[float]] | None = start.facts.get("latent_channels")
    channels = spec.gsvae["latent_channels"]
    if moments is None or len(moments["std"]) == channels:
        start.load("gsvae", gsvae).requires_grad_(True)
        return
    before = len(moments["std"])
    if not adapt:
        raise ValueError(
            f"vae = {start.path} has {before} latent channels and {spec.name} {channels}: this needs adapt = True"
        )
    by_spread = sorted(range(before), key=moments["std"].__getitem__, reverse=True)
    other = dataclasses.replace(spec, gsvae={**spec.gsvae, "latent_channels": before})
    tiny = start.facts.get("tiny_decoder")
    loaded = cast(GSVAE, start.load("gsvae", build_gsvae(_with_tiny_decoder(other, tiny))))
    take_latents(gsvae, loaded, sorted(by_spread[:channels]))


def _with_tiny_decoder(spec: BackboneSpec, tiny: dict[str, Any] | None) -> BackboneSpec:
    gsvae = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    return dataclasses.replace(spec, gsvae=gsvae if tiny is None else {**gsvae, "tiny_decoder": tiny})


def _load_base(folder: Path, load: Callable[[], None]) -> None:
    try:
        load()
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{folder}: does not fit the autoencoder: {' '.join(str(error).split())}") from None


def start_almost_deterministic(gsvae: GSVAE) -> None:
    """Start the posterior with a standard deviation of about 0.05.

    At the usual 1 the noise drowns the weak signal of an untrained encoder, and colours take many times longer to
    appear.
    """
    vae = gsvae.vae
    layer = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv  # means first, then log variances
    with torch.no_grad():
        half = layer.bias.shape[0] // 2
        layer.bias[half:] += _FIRST_LOG_VARIANCE
        layer.weight[half:] *= 0.1


@torch.no_grad()
def take_latents(gsvae: GSVAE, start: GSVAE, kept: list[int]) -> None:
    """Start an autoencoder with the weights of one that has another number of latent channels.

    The channels kept come first. Others begin at random and almost deterministic; the decoder does not read them yet.
    The 1 x 1 convolutions beside the latents, which mix all channels, go into the layers before and after them. What of
    the decoder's bias no shift of the channels kept stands for is missing in the padding of its first layer.
    """
    vae, old = gsvae.vae, start.vae
    before, channels, count = old.config.latent_channels, vae.config.latent_channels, len(kept)
    start_almost_deterministic(gsvae)
    writes, reads = old.encoder.conv_out, old.decoder.conv_in
    written, written_bias, read, read_bias = writes.weight, writes.bias, reads.weight, reads.bias
    if old.quant_conv is not None:  # SD3's autoencoder has none
        mix, shift = old.quant_conv.weight[:, :, 0, 0], old.quant_conv.bias
        written, written_bias = torch.einsum("oi,i...->o...", mix, written), mix @ written_bias + shift
        mix, shift = old.post_quant_conv.weight[:, :, 0, 0], old.post_quant_conv.bias
        kept_shift = torch.linalg.lstsq(mix[:, kept], shift[:, None]).solution[:, 0]
        read_bias = read_bias + read.sum(dim=(2, 3)) @ (shift - mix[:, kept] @ kept_shift)
        read = torch.einsum("wc...,ci->wi...", read, mix)
    first, chosen = torch.arange(count), torch.tensor(kept)
    here, there = torch.cat([first, channels + first]), torch.cat([chosen, before + chosen])  # then log variances
    vae.encoder.conv_out.weight[here], vae.encoder.conv_out.bias[here] = written[there], written_bias[there]
    vae.decoder.conv_in.weight.zero_()
    vae.decoder.conv_in.weight[:, :count], vae.decoder.conv_in.bias[:] = read[:, kept], read_bias
    if vae.quant_conv is not None:
        vae.quant_conv.weight[here] = torch.eye(2 * channels)[here, :, None, None]
        vae.quant_conv.bias[here] = 0.0
        _diagonal(vae.post_quant_conv, torch.ones(1, 1))
        vae.post_quant_conv.bias[:count] = kept_shift
    around = ("encoder.conv_out.", "quant_conv.", "post_quant_conv.", "decoder.conv_in.")
    rest = {name: value for name, value in old.state_dict().items() if not name.startswith(around)}
    vae.load_state_dict(rest, strict=False)


@torch.no_grad()
def start_as_average(gsvae: GSVAE) -> None:
    """Start the autoencoder as one that averages patches and spreads the averages smoothly again.

    From the usual random weights a small autoencoder needs thousands of steps to learn to pass colours through. Here
    residual branches and attention start at zero, layers that change the width start as the identity, and every
    averaged channel is carried twice, as x and as -x, since ``silu(x) - silu(-x) = x``. All other weights keep their
    random start.
    """
    vae = gsvae.vae
    kept = [index for name in _AVERAGED for index in range(*GRID_LAYOUT[name].indices(vae.config.in_channels))]
    kept = kept[: vae.config.latent_channels]
    count = len(kept)
    for module in chain(vae.encoder.modules(), vae.decoder.modules()):
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _diagonal(module.conv_shortcut, torch.ones(1, 1))
        elif isinstance(module, Attention):
            output = module.to_out[0]
            assert isinstance(output, nn.Linear)
            _zero(output)
        elif isinstance(module, Downsample2D):  # padded at the right and the bottom only: the first 2 x 2 taps
            _diagonal(module.conv, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4)
        elif isinstance(module, Upsample2D):
            assert isinstance(module.conv, nn.Conv2d)
            binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
            _diagonal(module.conv, torch.outer(binomial, binomial))
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        if convolution is not None:
            _diagonal(convolution, torch.ones(1, 1))
    _split(vae.encoder.conv_in, kept)
    _join(vae.encoder.conv_out, list(range(count)), count)
    _split(vae.decoder.conv_in, list(range(count)))
    _join(vae.decoder.conv_out, kept, count)


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    layer.weight.zero_()
    assert layer.bias is not None
    layer.bias.zero_()


def _diagonal(convolution: nn.Conv2d, kernel: torch.Tensor) -> None:
    """Apply `kernel` to every channel on its own; output channels beyond the input's keep their weights."""
    shared = min(convolution.in_channels, convolution.out_channels)
    convolution.weight[:shared] = 0.0
    convolution.weight[range(shared), range(shared)] = kernel
    assert convolution.bias is not None
    convolution.bias[:shared] = 0.0


def _split(convolution: nn.Conv2d, sources: list[int]) -> None:
    """First output channels: the input channels `sources`, then their negatives."""
    count = len(sources)
    assert 2 * count <= convolution.out_channels, "the autoencoder is too narrow to carry its averages"
    convolution.weight[: 2 * count] = 0.0
    convolution.weight[range(count), sources, 1, 1] = 1.0
    convolution.weight[range(count, 2 * count), sources, 1, 1] = -1.0
    assert convolution.bias is not None
    convolution.bias[: 2 * count] = 0.0


def _join(convolution: nn.Conv2d, targets: list[int], count: int) -> None:
    """Output channels `targets`: first input channels minus those that hold their negatives."""
    convolution.weight[targets] = 0.0
    convolution.weight[targets, range(count), 1, 1] = 1.0
    convolution.weight[targets, range(count, 2 * count), 1, 1] = -1.0
    assert convolution.bias is not None
    convolution.bias[targets] = 0.0
