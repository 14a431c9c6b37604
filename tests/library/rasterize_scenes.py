"""Scenes and cameras of the rasterizer tests: small, seeded, each one trouble a rasterizer can have."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WIDTH, HEIGHT = 45, 37  # no multiples of a tile, not square


@dataclass(frozen=True)
class Case:
    """Arguments of one rendering."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] wxyz, not unit
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3]
    viewmats: Tensor  # [C, 4, 4] world to camera, OpenCV
    intrinsics: Tensor  # [C, 3, 3] pixels
    eps2d: float = 0.3
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def splats(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.means, self.quats, self.scales, self.opacities, self.colors


def look_at(eye: tuple[float, float, float], roll_deg: float = 0.0) -> Tensor:
    """World-to-camera [4, 4] of a camera at `eye` that looks at the origin, z up in the world, y down in the image."""
    position = torch.tensor(eye, dtype=torch.float64)
    forward = -position / position.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    down = torch.linalg.cross(forward, right)
    c, s = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    rotation = torch.stack([c * right + s * down, c * down - s * right, forward])
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
    return matrix.float()


def three_cameras(fx: float = 58.0, fy: float = 64.0) -> tuple[Tensor, Tensor]:
    """Three viewpoints, fx != fy, centre off the image's middle."""
    viewmats = torch.stack([look_at((1.4, 0.1, 0.3)), look_at((-0.5, 1.2, 0.7), 20.0), look_at((0.2, -0.9, -1.0))])
    k = torch.tensor([[fx, 0.0, 20.3], [0.0, fy, 21.9], [0.0, 0.0, 1.0]])
    return viewmats, k.expand(3, 3, 3).contiguous()


def random_case(n: int, seed: int, *, scale: float = 0.03, spread: float = 0.3, anisotropy: float = 0.5) -> Case:
    """A cloud around the origin: log-normal scales, any orientation, opacities and colours uniform."""
    g = torch.Generator().manual_seed(seed)
    viewmats, intrinsics = three_cameras()
    return Case(
        means=spread * torch.randn(n, 3, generator=g),
        quats=2 * torch.randn(n, 4, generator=g),
        scales=scale * torch.exp(anisotropy * torch.randn(n, 3, generator=g)),
        opacities=torch.rand(n, generator=g),
        colors=torch.rand(n, 3, generator=g),
        viewmats=viewmats,
        intrinsics=intrinsics,
    )


def around_threshold() -> Case:
    case = random_case(600, 7)
    ramp = torch.linspace(0.5, 3.0, 600) / 255.0
    return replace(case, opacities=ramp)


def wide_view() -> Case:
    viewmats, intrinsics = three_cameras(fx=13.0, fy=14.0)  # 120 degrees: the clamp of the Jacobian is at work
    return replace(random_case(600, 8, spread=0.8), viewmats=viewmats, intrinsics=intrinsics)


def everything_culled() -> Case:
    case = random_case(50, 9)
    behind = case.means + 1e3 * torch.tensor([1.4, 0.1, 0.3])
    return replace(case, means=behind, viewmats=case.viewmats[:1], intrinsics=case.intrinsics[:1])


CASES = {
    "generic": lambda: random_case(800, 1),
    "sub_pixel": lambda: random_case(800, 2, scale=0.003),
    "eps0_isotropic": lambda: replace(random_case(600, 3, anisotropy=0.0), eps2d=0.0),
    "eps0_anisotropic": lambda: replace(random_case(600, 4, anisotropy=0.8), eps2d=0.0),
    "huge": lambda: random_case(300, 5, scale=0.4),
    "around_the_camera": lambda: random_case(600, 6, spread=1.2),
    "opaque": lambda: replace(random_case(600, 10), opacities=torch.ones(600)),
    "around_threshold": around_threshold,
    "wide_view": wide_view,
    "single": lambda: replace(random_case(1, 11, scale=0.1), opacities=torch.tensor([0.8])),
    "none": lambda: random_case(0, 12),
    "everything_culled": everything_culled,
}
