"""Every network of a bundle and every graph made of one, by name.

Pulls in diffusers or transformers when a network is built that needs them, and not before: each takes seconds, and
every stage of a server is a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.control import control_graphs
from diffsplat.denoiser import STEP, build_denoiser, denoiser_graph, request_graphs, takes_pooled_text
from diffsplat.elevest import ElevationEstimator, build_elevest, elevest_config
from diffsplat.gsrecon import RECON, SplatReconstructor, build_gsrecon

if TYPE_CHECKING:
    from diffsplat.gsvae import GSVAE


def network_builders(spec: BackboneSpec) -> dict[str, Callable[[], nn.Module]]:
    """Network name -> how to build it, without weights. The order is that in which a request meets them."""
    texts = zip(spec.text.numbered(TEXT_ENCODER), spec.text.encoders, strict=True)
    return {
        **{name: _built_by("text.build_encoder", encoder, f"{spec.name}, {name}") for name, encoder in texts},
        "denoiser": partial(build_denoiser, spec),
        "gsvae": _built_by("gsvae.build_gsvae", spec),
        **({"image_encoder": _built_by("image_vae.build_image_encoder", spec)} if spec.image_encoder else {}),
        **({"elevest": partial(build_elevest, elevest_config(spec.elevest))} if spec.elevest is not None else {}),
        **{f"controlnet_{kind}": _built_by("controlnet.build_controlnet", spec) for kind in spec.controls},
        "gsrecon": partial(build_gsrecon, spec),
    }


def _built_by(name: str, *arguments: Any) -> Callable[..., nn.Module]:
    """A function or class of the library, given as MODULE.NAME, that is imported when it is called."""
    module, _, attribute = name.partition(".")

    def build(*more: Any) -> nn.Module:
        with torch.device("cpu"):  # a caller may build on the meta device: what an import makes must not lie there
            function = getattr(import_module(f"diffsplat.{module}"), attribute)
        return function(*arguments, *more)  # type: ignore[no-any-return]

    return build


class SplatDecoder(nn.Module):
    """The decoder graph: latents of the diffusion space [B, V, C, h, w] -> splat grid [B, V, 12, H, W] in [-1, 1]."""

    def __init__(self, gsvae: "GSVAE") -> None:
        super().__init__()
        self.gsvae = gsvae

    def forward(self, latents: Tensor) -> Tensor:
        """`GSVAE.decode`: undo scale and shift, decode all views as one batch, clamp."""
        return self.gsvae.decode(latents)


@dataclass(frozen=True)
class GraphModule:
    """How a graph is made of a network of the bundle."""

    network: str
    wrap: Callable[[Any], nn.Module]


def graph_modules(spec: BackboneSpec) -> dict[str, GraphModule]:
    """Graph name -> how it is made."""
    moments = _built_by("image_vae.ImageMoments")
    return {
        **{name: GraphModule(name, lambda network: network) for name in spec.text.numbered(TEXT_ENCODER)},
        **{
            name: GraphModule("denoiser", partial(denoiser_graph, name, spec)) for name in (*request_graphs(spec), STEP)
        },
        "decoder": GraphModule("gsvae", SplatDecoder),
        RECON: GraphModule("gsrecon", SplatReconstructor),
        **({"image_encoder": GraphModule("image_encoder", moments)} if spec.image_encoder else {}),
        **({"elevation": GraphModule("elevest", _estimator(spec))} if spec.elevest is not None else {}),
        **{name: graph for kind in spec.controls for name, graph in _control_modules(spec, kind).items()},
    }


def _estimator(spec: BackboneSpec) -> Callable[[Any], nn.Module]:
    assert spec.elevest is not None
    return partial(ElevationEstimator, input_size=elevest_config(spec.elevest).input_size)


def _control_modules(spec: BackboneSpec, kind: str) -> dict[str, GraphModule]:
    """The graphs of a ControlNet."""
    from diffsplat.controlnet import ControlStep, HintEncoder
    from diffsplat.multiview import TextContext
    from diffsplat.step_view import AddedEmbedding

    views = spec.geometry.views
    wraps: tuple[Callable[[Any], nn.Module], ...] = (partial(HintEncoder, num_views=views), TextContext)
    if takes_pooled_text(spec):
        wraps += (AddedEmbedding,)
    wraps += (partial(ControlStep, num_views=views),)
    names = control_graphs(spec, kind)
    return {name: GraphModule(f"controlnet_{kind}", wrap) for name, wrap in zip(names, wraps, strict=True)}


def build_graph_module(name: str, spec: BackboneSpec, network: nn.Module) -> nn.Module:
    """The torch module behind a graph, around a network that the caller holds (trained, or loaded from a bundle)."""
    return graph_modules(spec)[name].wrap(network).eval()
