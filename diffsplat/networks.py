"""Every network of a bundle, and every graph made from a network, by name.

diffusers and transformers are imported only when a network that needs them is built: each import takes seconds, and
every stage of a server is a process of its own.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.backends.precision import cast_network, in_precision, without_parameters
from diffsplat.bundle import Bundle
from diffsplat.denoisers.control_inputs import control_graphs
from diffsplat.denoisers.graph_inputs import STEP, request_graphs, takes_pooled_text
from diffsplat.denoisers.interface import build_denoiser, denoiser_graph
from diffsplat.graph import Precision
from diffsplat.images.elevest import ElevationEstimator, build_elevest, elevest_config
from diffsplat.splats.gsrecon import GSRECON, SplatReconstructor, build_gsrecon
from diffsplat.weights import load_weights, weight_files

if TYPE_CHECKING:
    from diffsplat.splats.gsvae import GSVAE

DECODER, TINY_DECODER = "decoder", "tiny_decoder"  # graphs of the GSVAE
WHOLE = ""  # a network itself, as a part of it
# Parts of networks that compute in float32 whatever the precision of their graphs. Splats are positions: the 8 or 11
# bits of half precision show as steps in a surface. The decoder's last layers give them; GSRecon is small.
FLOAT32_PARTS: dict[str, tuple[str, ...]] = {
    "gsvae": ("vae.decoder.conv_norm_out", "vae.decoder.conv_out"),
    "gsrecon": (WHOLE,),
}


def served_precision(network: str, precision: Precision, mixed: bool = True) -> Precision:
    """What the graphs of a network compute in when `precision` is asked for; `mixed`: layers may differ in theirs."""
    parts = FLOAT32_PARTS.get(network, ())
    return "fp32" if WHOLE in parts or (parts and not mixed) else precision


def network_builders(spec: BackboneSpec) -> dict[str, Callable[[], nn.Module]]:
    """Network name -> function that builds it without weights, in the order in which a request uses the networks."""
    texts = zip(spec.text.numbered(TEXT_ENCODER), spec.text.encoders, strict=True)
    return {
        **{
            name: _built_by("diffsplat.text.encoders", "build_encoder", encoder, f"{spec.name}, {name}")
            for name, encoder in texts
        },
        "denoiser": partial(build_denoiser, spec),
        "gsvae": _built_by("diffsplat.splats.gsvae", "build_gsvae", spec),
        **(
            {"image_encoder": _built_by("diffsplat.images.vae_encoder", "build_image_encoder", spec)}
            if spec.image_encoder
            else {}
        ),
        **({"elevest": partial(build_elevest, elevest_config(spec.elevest))} if spec.elevest is not None else {}),
        **{
            f"controlnet_{kind}": _built_by("diffsplat.denoisers.controlnet", "build_controlnet", spec)
            for kind in spec.controls
        },
        "gsrecon": partial(build_gsrecon, spec),
    }


def _built_by(module: str, name: str, *arguments: Any) -> Callable[..., nn.Module]:
    """Import a module on call and call its function or class `name`, with `arguments` before those of the call."""

    def build(*more: Any) -> nn.Module:
        with torch.device(
            "cpu"
        ):  # the caller may build on the meta device, but tensors made by an import must not lie there
            function = getattr(import_module(module), name)
        return function(*arguments, *more)  # type: ignore[no-any-return]

    return build


def bundle_network(
    bundle: Bundle, network: str, precision: Precision = "fp32", device: torch.device | str = "cpu"
) -> nn.Module:
    """One network of an opened bundle, as `load_network` builds it."""
    return load_network(bundle.root, bundle.files, network, bundle.spec, precision, device)


def load_network(
    folder: Path,
    listed: Collection[str],
    network: str,
    spec: BackboneSpec,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Build `network` for a spec in evaluation mode with its weights, strictly.

    Args:
        folder: folder of the weights.
        listed: names of its files that were verified; nothing else is opened.
        network: a name of `network_builders`.
        spec: what to build.
        precision: type of the weights, except in `FLOAT32_PARTS`.
        device: where they lie.

    Raises:
        BundleError: the weights are missing, damaged, or do not fit the spec; the message names the file.
    """
    weight_files(folder, listed, network)  # fails before a large module is built
    with without_parameters():
        module = network_builders(spec)[network]()
    cast_network(module, served_precision(network, precision), FLOAT32_PARTS.get(network, ()), device)
    load_weights(module, folder, listed, network)  # casts them tensor by tensor, straight to where they are wanted
    return module.eval().requires_grad_(False)


class SplatDecoder(nn.Module):
    """A decoder graph: latents of the diffusion space [B, V, C, h, w] -> splat grid [B, V, 12, H, W] in [-1, 1]."""

    def __init__(self, gsvae: "GSVAE", tiny: bool = False) -> None:
        super().__init__()
        self.gsvae = gsvae
        self.tiny = tiny

    def forward(self, latents: Tensor) -> Tensor:
        """`GSVAE.decode` or `decode_tiny`: undo scale and shift, decode all views as one batch, clamp."""
        return self.gsvae.decode_tiny(latents) if self.tiny else self.gsvae.decode(latents)


def preview_decoder(spec: BackboneSpec) -> str:
    """The graph that decodes previews."""
    return TINY_DECODER if "tiny_decoder" in spec.gsvae else DECODER


@dataclass(frozen=True)
class GraphModule:
    """How a graph is made from a network of the bundle."""

    network: str
    wrap: Callable[[Any], nn.Module]


def graph_modules(spec: BackboneSpec) -> dict[str, GraphModule]:
    """Graph name -> its network and wrapper."""
    moments = _built_by("diffsplat.images.vae_encoder", "ImageMoments")
    return {
        **{name: GraphModule(name, lambda network: network) for name in spec.text.numbered(TEXT_ENCODER)},
        **{
            name: GraphModule("denoiser", partial(denoiser_graph, name, spec)) for name in (*request_graphs(spec), STEP)
        },
        DECODER: GraphModule("gsvae", SplatDecoder),
        **(
            {TINY_DECODER: GraphModule("gsvae", partial(SplatDecoder, tiny=True))}
            if preview_decoder(spec) == TINY_DECODER
            else {}
        ),
        GSRECON: GraphModule("gsrecon", SplatReconstructor),
        **({"image_encoder": GraphModule("image_encoder", moments)} if spec.image_encoder else {}),
        **({"elevest": GraphModule("elevest", _estimator(spec))} if spec.elevest is not None else {}),
        **{name: graph for kind in spec.controls for name, graph in _control_modules(spec, kind).items()},
    }


def _estimator(spec: BackboneSpec) -> Callable[[Any], nn.Module]:
    assert spec.elevest is not None
    return partial(ElevationEstimator, input_size=elevest_config(spec.elevest).input_size)


def _control_modules(spec: BackboneSpec, kind: str) -> dict[str, GraphModule]:
    """The graphs of a ControlNet."""
    from diffsplat.denoisers.controlnet import ControlStep, HintEncoder
    from diffsplat.denoisers.shared_weights import AddedEmbedding
    from diffsplat.denoisers.unet import TextContext

    views = spec.geometry.views
    wraps: tuple[Callable[[Any], nn.Module], ...] = (partial(HintEncoder, num_views=views), TextContext)
    if takes_pooled_text(spec):
        wraps += (AddedEmbedding,)
    wraps += (partial(ControlStep, num_views=views),)
    names = control_graphs(spec, kind)
    return {name: GraphModule(f"controlnet_{kind}", wrap) for name, wrap in zip(names, wraps, strict=True)}


def build_graph_module(name: str, spec: BackboneSpec, network: nn.Module, precision: Precision = "fp32") -> nn.Module:
    """The torch module of a graph, wrapped around the caller's network (trained, or loaded from a bundle).

    The network's weights are in `precision` already; inputs and outputs are float32 in any.
    """
    return in_precision(graph_modules(spec)[name].wrap(network).eval(), precision)
