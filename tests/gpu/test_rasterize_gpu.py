"""gsplat on CUDA against the CPU kernels: same signature, same images, same gradients.

Tolerances are a proposal: gsplat compiles with fast-math, so single pixels flip at the 1/255 and 1e-4 thresholds.
"""

import importlib.util

import pytest
import torch

from benchmarks.splat_scene import make_scene, orbit
from diffsplat.rasterize import cuda, rasterization, render_uint8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="needs gsplat (the cuda extra)"),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("eps2d", [0.0, 0.3])
@pytest.mark.parametrize("size", [256, 512])
def test_images_match(size: int, eps2d: float, packed: bool) -> None:
    scene, cameras = make_scene(256), orbit(2, size)
    background = torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.5, 0.9]])
    slow, slow_alphas, _ = rasterization(*scene, *cameras, size, size, eps2d=eps2d, backgrounds=background)
    fast, fast_alphas, _ = cuda.rasterization(
        *(t.cuda() for t in (*scene, *cameras)),
        size,
        size,
        0.01,
        1e10,
        eps2d,
        background.cuda(),
        "RGB",
        None,
        packed=packed,
    )
    for expected, got in ((slow, fast.cpu()), (slow_alphas, fast_alphas.cpu())):
        error = (got - expected).abs()
        assert error.mean() < 1e-4
        assert (error < 2e-3).float().mean() > 0.999


def test_gradients_match() -> None:
    scene, cameras = make_scene(64), orbit(4, 96)
    results = []
    for device in ("cpu", "cuda"):
        splats = [s.to(device).requires_grad_() for s in scene]
        images, alphas, _ = rasterization(*splats, *(c.to(device) for c in cameras), 96, 96, render_mode="RGB+ED")
        g = torch.Generator().manual_seed(1)
        weights = torch.randn(images.shape, generator=g).to(device)
        weights[..., 3] *= alphas[..., 0].detach() > 0.01
        ((images * weights).sum() + alphas.square().sum()).backward()
        results.append([s.grad.cpu().flatten() for s in splats])
    for expected, got in zip(*results, strict=True):
        assert torch.nn.functional.cosine_similarity(expected, got, dim=0) > 0.999


def test_uint8_frames_match_and_no_splats_work() -> None:
    scene, cameras = make_scene(128), orbit(5, 128)
    ground, factors = torch.ones(5, 3), torch.tensor([1.0, 1.0, 0.5, 0.5, 2.0])
    slow = render_uint8(*scene, *cameras, 128, 128, backgrounds=ground, splat_scales=factors)
    arguments = [t.cuda() for t in (*scene, *cameras)]
    fast = render_uint8(*arguments, 128, 128, backgrounds=ground.cuda(), splat_scales=factors)
    assert fast.is_cuda and fast.dtype == torch.uint8
    assert ((fast.cpu().int() - slow.int()).abs() <= 1).float().mean() > 0.999
    empty = [t[:0] for t in arguments[:5]]
    assert (render_uint8(*empty, *arguments[5:], 128, 128, backgrounds=ground.cuda()) == 255).all()
