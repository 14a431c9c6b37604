"""Every network of a bundle and every graph made of one, by name.

The one module that pulls in diffusers and transformers: `bundle` and `runtime` import it only when torch networks are
built, so that a stage which serves exported graphs starts without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.gsrecon import build_gsrecon
from diffsplat.gsvae import GSVAE, build_gsvae
from diffsplat.multiview import DenoiserStep, TextContext, build_denoiser
from diffsplat.text import build_text_encoder

# network name -> how to build it, without weights, from the spec
NETWORKS: dict[str, Callable[[BackboneSpec], nn.Module]] = {
    "text_encoder": build_text_encoder,
    "denoiser": build_denoiser,
    "gsvae": build_gsvae,
    "gsrecon": build_gsrecon,
}


class SplatDecoder(nn.Module):
    """The decoder graph: latents of the diffusion space [B, V, C, h, w] -> splat grid [B, V, 12, H, W] in [-1, 1]."""

    def __init__(self, gsvae: GSVAE) -> None:
        super().__init__()
        self.gsvae = gsvae

    def forward(self, latents: Tensor) -> Tensor:
        """`GSVAE.decode`: undo scale and shift, decode all views as one batch, clamp."""
        return self.gsvae.decode(latents)


@dataclass(frozen=True)
class GraphModule:
    """How a graph is made of a network of the bundle."""

    network: str
    wrap: Callable[[Any, BackboneSpec], nn.Module]


GRAPHS: dict[str, GraphModule] = {
    "text_encoder": GraphModule("text_encoder", lambda network, spec: network),
    "denoiser_context": GraphModule("denoiser", lambda network, spec: TextContext(network)),
    "denoiser": GraphModule("denoiser", lambda network, spec: DenoiserStep(network, spec.geometry.views)),
    "decoder": GraphModule("gsvae", lambda network, spec: SplatDecoder(network)),
}


def build_graph_module(name: str, spec: BackboneSpec, network: nn.Module) -> nn.Module:
    """The torch module behind a graph, around a network that the caller holds (trained, or loaded from a bundle)."""
    return GRAPHS[name].wrap(network, spec).eval()
