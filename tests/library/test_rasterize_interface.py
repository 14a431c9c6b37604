"""The public function: what it accepts, what it refuses and how, and what it needs installed."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffsplat.rasterize
from diffsplat.rasterize import CrowdedFrameError, cuda, rasterization, render_uint8
from tests.library.rasterize_scenes import Case, random_case

CASE = random_case(60, 70, scale=0.1)


def call(case: Case = CASE, **options: object) -> Tensor:
    return rasterization(*case.splats, case.viewmats, case.intrinsics, case.width, case.height, **options)[0]


def arguments(**replaced: object) -> dict[str, object]:
    return {
        "means": CASE.means, "quats": CASE.quats, "scales": CASE.scales, "opacities": CASE.opacities,
        "colors": CASE.colors, "viewmats": CASE.viewmats, "Ks": CASE.intrinsics, "width": 20, "height": 10, **replaced,
    }  # fmt: skip


def spoilt(tensor: Tensor, row: int, value: float) -> Tensor:
    copy = tensor.clone()
    copy[row] = value
    return copy


REFUSED = {
    "means is a list": ({"means": [0.0, 0.0, 1.0]}, "means must be a torch.Tensor"),
    "means shape": ({"means": CASE.means[:, :2]}, r"means must have shape \[N, 3\], got \[60, 2\]"),
    "quats count": ({"quats": CASE.quats[:5]}, r"quats must have shape \[N=60, 4\], got \[5, 4\]"),
    "opacities as column": ({"opacities": CASE.opacities[:, None]}, r"opacities must have shape \[N=60\], got"),
    "colors channels": ({"colors": CASE.colors[:, :2]}, "colors must have shape"),
    "float64": ({"scales": CASE.scales.double()}, "scales must be float32, got torch.float64"),
    "no quats": ({"quats": None}, "quats and scales must be given"),
    "viewmats shape": ({"viewmats": CASE.viewmats[0]}, "viewmats must have shape"),
    "camera counts": ({"Ks": CASE.intrinsics[:2]}, r"Ks must have shape \[C=3, 3, 3\], got \[2, 3, 3\]"),
    "backgrounds": ({"backgrounds": torch.ones(3)}, "backgrounds must have shape"),
    "mode": ({"render_mode": "D"}, "render_mode must be one of RGB, RGB\\+ED, RGB\\+D, got 'D'"),
    "width": ({"width": 0}, r"width must be an int in 1 .. 16384 pixels, got 0"),
    "height": ({"height": 10.0}, "height must be an int"),
    "near": ({"near_plane": 0.0}, "near_plane must be above 0"),
    "eps2d": ({"eps2d": -0.1}, "eps2d must be"),
    "NaN": ({"means": spoilt(CASE.means, 7, float("nan"))}, r"means must be finite, got nan at \[7, 0\]"),
    "inf": ({"colors": spoilt(CASE.colors, 3, float("inf"))}, "colors must be finite, got inf"),
    "opacity": ({"opacities": CASE.opacities * 255}, "opacities must be in 0 .. 1, got"),
    "focal": ({"Ks": -CASE.intrinsics}, "Ks must hold focal lengths above 0"),
    "camera gradient": ({"viewmats": CASE.viewmats.clone().requires_grad_()}, "must not require gradients"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name: str) -> None:
    replaced, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        rasterization(**arguments(**replaced))


@pytest.mark.parametrize(
    "factors", [torch.ones(2), torch.tensor([1.0, -1e-9, 1.0]), torch.ones(3, dtype=torch.float64)]
)
def test_bad_splat_scales_are_named(factors: Tensor) -> None:
    with pytest.raises(ValueError, match="splat_scales must be"):
        render_uint8(**arguments(splat_scales=factors))


def test_a_splat_scale_of_zero_draws_nothing() -> None:
    """The first frame of growing splats: without dilation nothing is left of a splat."""
    frames = render_uint8(
        **arguments(splat_scales=torch.tensor([1.0, 0.0, 1.0]), eps2d=0.0, backgrounds=torch.ones(3, 3))
    )
    assert (frames[1] == 255).all() and (frames[0] != 255).any() and (frames[2] != 255).any()


def test_a_frame_with_too_many_pairs_of_splat_and_tile_is_refused() -> None:
    """17,000 splats over all 16,384 tiles: their lists would take a gigabyte, and four million overflow positions."""
    count = 17_000
    crowd = {
        "means": torch.zeros(count, 3), "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        "scales": torch.full((count, 3), 100.0), "opacities": torch.ones(count), "colors": torch.ones(count, 3),
    }  # fmt: skip
    camera = torch.eye(4)[None]
    camera[:, 2, 3] = 2.0
    intrinsics = torch.tensor([[[2844.0, 0, 1024], [0, 2844.0, 1024], [0, 0, 1]]])
    with pytest.raises(CrowdedFrameError, match="2048 x 2048 pixels cover more than 268435456 tiles of 16 x 16"):
        render_uint8(**crowd, viewmats=camera, Ks=intrinsics, width=2048, height=2048)


def test_finite_nonsense_is_drawn_or_dropped_but_never_spreads() -> None:
    """Zero quaternions, absurd sizes, centres in the camera: no crash, no NaN, the other splats as before."""
    plain = call()
    extra = 6
    g = torch.Generator().manual_seed(0)
    means, quats, scales = (
        torch.randn(extra, 3, generator=g),
        torch.randn(extra, 4, generator=g),
        torch.full((extra, 3), 0.1),
    )
    eyes = torch.linalg.inv(CASE.viewmats)[:, :3, 3]
    quats[0] = 0
    scales[1] = 1e30
    means[2] = 1e30
    means[3] = eyes[0]  # depth 0
    scales[4] = 0  # a point: nothing at eps2d 0
    quats[5] = 1e-20
    bad = Case(
        torch.cat([means, CASE.means]), torch.cat([quats, CASE.quats]), torch.cat([scales, CASE.scales]),
        torch.cat([torch.ones(extra), CASE.opacities]), torch.cat([torch.rand(extra, 3, generator=g), CASE.colors]),
        CASE.viewmats, CASE.intrinsics,
    )  # fmt: skip
    splats = [s.clone().requires_grad_() for s in bad.splats]
    images, alphas, _ = rasterization(*splats, bad.viewmats, bad.intrinsics, bad.width, bad.height, eps2d=0.0)
    (images.sum() + alphas.sum()).backward()
    assert torch.isfinite(images).all() and torch.isfinite(alphas).all()
    for splat in splats:
        assert torch.isfinite(splat.grad).all()
    dropped = [0, 1, 2, 5]
    kept = replace(bad, opacities=bad.opacities.index_fill(0, torch.tensor([3, 4]), 0.0))
    assert torch.equal(call(kept), plain), f"splats {dropped} must leave no trace"


def test_layout_and_gradient_flags_of_inputs_do_not_matter() -> None:
    strided = Case(
        *(torch.stack([s, s + 1], -1)[..., 0] for s in CASE.splats), CASE.viewmats.mT.contiguous().mT, CASE.intrinsics
    )
    assert not strided.means.is_contiguous() and not strided.viewmats.is_contiguous()
    assert torch.equal(call(strided), call())
    flagged = [s.clone().requires_grad_() for s in CASE.splats]
    frames = render_uint8(*flagged, CASE.viewmats, CASE.intrinsics, CASE.width, CASE.height)
    assert frames.dtype == torch.uint8 and not frames.requires_grad
    with torch.no_grad():
        assert not rasterization(*flagged, CASE.viewmats, CASE.intrinsics, CASE.width, CASE.height)[0].requires_grad


def test_no_cameras_and_no_splats_have_the_right_shapes() -> None:
    images, alphas, meta = rasterization(
        *CASE.splats, CASE.viewmats[:0], CASE.intrinsics[:0], 20, 10, render_mode="RGB+ED"
    )
    assert images.shape == (0, 10, 20, 4) and alphas.shape == (0, 10, 20, 1)
    empty = [s[:0] for s in CASE.splats]
    images, alphas, meta = rasterization(
        *empty, CASE.viewmats, CASE.intrinsics, 20, 10, backgrounds=torch.full((3, 3), 0.25)
    )
    assert (images == 0.25).all() and (alphas == 0).all() and (meta["width"], meta["height"]) == (20, 10)
    frames = render_uint8(*empty, CASE.viewmats, CASE.intrinsics, 20, 10, backgrounds=torch.ones(3, 3))
    assert (frames == 255).all()


def test_missing_gsplat_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(ImportError, match="rasterizing CUDA tensors needs gsplat"):
        cuda.rasterization(*CASE.splats, CASE.viewmats, CASE.intrinsics, 20, 10, 0.01, 1e10, 0.3, None, "RGB", None)


def run_python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True
    )


def test_compiled_and_cached_kernels_agree_to_the_bit(tmp_path: Path) -> None:
    """Images and gradients of a process that compiles the kernels and of one that finds them in its cache."""
    code = (
        "import hashlib\n"
        "from diffsplat.rasterize import kernels_backward, rasterization\n"
        "from tests.library.rasterize_scenes import random_case\n"
        "case = random_case(3000, 40, scale=0.05)\n"
        "splats = [splat.clone().requires_grad_() for splat in case.splats]\n"
        "image, alpha, _ = rasterization(\n"
        "    *splats, case.viewmats, case.intrinsics, case.width, case.height, render_mode='RGB+ED', threads=1\n"
        ")\n"
        "(image.square().sum() + alpha.sum()).backward()\n"
        "results = [image.detach(), alpha.detach(), *(splat.grad for splat in splats)]\n"
        "print(*(hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16] for result in results))\n"
        "print(sum(kernels_backward.blend_frame_backward.stats.cache_hits.values()))\n"
    )
    root = str(Path(diffsplat.rasterize.__file__).parents[2])
    compiled, cached = (
        run_python(code, tmp_path, PYTHONPATH=root, NUMBA_CACHE_DIR=str(tmp_path / "kernels")) for _ in range(2)
    )
    assert compiled.returncode == cached.returncode == 0, compiled.stderr + cached.stderr
    (digests, hits), (digests_again, hits_again) = compiled.stdout.splitlines(), cached.stdout.splitlines()
    assert (hits, hits_again) == ("0", "1")
    assert digests == digests_again


def test_after_the_warm_up_nothing_is_compiled_and_gsplat_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['gsplat'] = None\n"
        "from numba.core.registry import CPUDispatcher\n"
        "from diffsplat.rasterize import kernels_backward, kernels_blend, kernels_project, kernels_project_backward\n"
        "from diffsplat.rasterize import rasterization, render_uint8, warm_up\n"
        "from tests.library.rasterize_scenes import random_case\n"
        "modules = kernels_backward, kernels_blend, kernels_project, kernels_project_backward\n"
        "def compiled():\n"
        "    kernels = [value for module in modules for value in vars(module).values()]\n"
        "    return sum(len(kernel.signatures) for kernel in kernels if isinstance(kernel, CPUDispatcher))\n"
        "assert compiled() == 0\n"
        "warm_up(gradients=True)\n"
        "warm = compiled()\n"
        "case = random_case(60, 70, scale=0.1)\n"
        "splats = [splat.clone().requires_grad_() for splat in case.splats]\n"
        "arguments = *splats, case.viewmats, case.intrinsics, case.width, case.height\n"
        "rasterization(*arguments, render_mode='RGB+ED')[0].sum().backward()\n"
        "render_uint8(*arguments)\n"
        "assert compiled() == warm > 0, (compiled(), warm)\n"
        "assert sys.modules['gsplat'] is None\n"
    )
    root = str(Path(diffsplat.rasterize.__file__).parents[2])
    done = run_python(code, tmp_path, PYTHONPATH=root)
    assert done.returncode == 0, done.stderr


def test_a_read_only_install_without_home_imports_and_says_what_it_costs(tmp_path: Path) -> None:
    """No folder for compiled kernels: plain files stand where numba would make folders (root may write anywhere)."""
    package = Path(diffsplat.rasterize.__file__).parent
    copy = tmp_path / "diffsplat" / "rasterize"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package.parent / "kernel_cache.py", copy.parent)
    (tmp_path / "diffsplat" / "__init__.py").touch()
    (copy / "__pycache__").touch()
    (tmp_path / "home").touch()
    code = (
        "import numpy as np\n"
        "from diffsplat.rasterize import jit, kernels_project\n"
        f"assert kernels_project.__file__.startswith({str(tmp_path)!r})\n"
        "assert not jit.cache_works()\n"
        "k, o = np.empty((2, 1), np.uint32), np.empty((2, 1), np.int32)\n"
        "kernels_project.depth_order(np.ones((1, 12), np.float32), 1, k[0], o[0], k[1], o[1])\n"
    )
    done = run_python(code, tmp_path, PYTHONPATH=str(tmp_path), HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
