"""Options of the diffusion loss."""

from dataclasses import dataclass
from typing import Literal

from training.config.common import Bound


@dataclass(frozen=True)
class ObjectiveOptions:
    """Timesteps, weights and preconditioning; the noise process itself belongs to the backbone."""

    min_snr_gamma: float = 0.0  # 0: all timesteps weigh the same
    stratified: bool = True  # timesteps of a batch spread evenly over their density; not with `compat`
    edm: bool = False  # noise in EDM's scale, and the loss on clean estimates; not for flows
    density: Literal["uniform", "logit_normal", "mode"] = "uniform"  # of timesteps; the latter two for flows
    logit_mean: float = 0.0  # of logit_normal
    logit_std: float = 1.0
    mode_scale: float = 1.29  # of mode
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"  # for flows: 1, 1 / sigma^2, 2 / (pi (1 - 2 s + 2 s^2))
    on_clean: bool = False  # for flows: the loss compares clean estimates ("precondition_outputs")

    def bounds(self) -> list[Bound]:
        """Ranges of the numbers."""
        return [
            Bound("objective.min_snr_gamma", self.min_snr_gamma, 0.0, 1e6),
            Bound("objective.logit_std", self.logit_std, 1e-6, 100.0),
            Bound("objective.mode_scale", self.mode_scale, -1.0, 2.0 / (3.14159265 - 2.0)),
        ]
