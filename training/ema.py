"""Exponential moving average of weights; the default warm-up is that of the published runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.config.common import Optim


def ema_decay(
    update: int,
    max_decay: float = 0.9999,
    warmup: bool = True,
    inverse_gamma: float = 1.0,
    power: float = 0.75,
    min_decay: float = 0.0,
    update_after_step: int = 0,
) -> float:
    """Share of the old average kept at update 1, 2, ...

    With k = update - 1 - update_after_step: 0 while k <= 0, so that the average follows the parameters, then
    ``1 - (1 + k / inverse_gamma)^-power`` clamped to ``min_decay .. max_decay``; without warm-up `max_decay`.
    """
    k = update - 1 - update_after_step
    if k <= 0:
        return 0.0
    decay = 1.0 - (1.0 + k / inverse_gamma) ** -power if warmup else max_decay
    return max(min(decay, max_decay), min_decay)


class Ema:
    """Averages of a module's parameters; buffers are not averaged.

    Args:
        module: What is trained; its parameters are read at every update.
        max_decay: Cap of the decay.
        warmup: Whether the decay rises to its cap, see `ema_decay`.
        inverse_gamma: Steps of the warm-up's time constant.
        power: Exponent of the warm-up.
        min_decay: Floor of the decay.
        update_after_step: Updates during which the average follows the parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        max_decay: float = 0.9999,
        warmup: bool = True,
        inverse_gamma: float = 1.0,
        power: float = 0.75,
        min_decay: float = 0.0,
        update_after_step: int = 0,
    ) -> None:
        self._decay_options = (max_decay, warmup, inverse_gamma, power, min_decay, update_after_step)
        self.updates = 0
        self._live = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().clone() for parameter in self._live]

    @classmethod
    def of(cls, module: nn.Module, options: Optim) -> "Ema":
        """The average that a run's options describe."""
        return cls(
            module,
            options.ema_max_decay,
            options.ema_warmup,
            options.ema_inverse_gamma,
            options.ema_power,
            options.ema_min_decay,
            options.ema_update_after_step,
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        weight = 1.0 - ema_decay(self.updates, *self._decay_options)
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self._live], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and live parameters; a second call puts them back."""
        for average, live in zip(self.averages, self._live, strict=True):
            held = live.detach().clone()
            live.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, int | list[Tensor]]:
        """Everything needed to continue."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, int | list[Tensor]]) -> None:
        """Inverse of `state_dict`."""
        averages = state["averages"]
        assert isinstance(averages, Iterable) and isinstance(state["updates"], int)
        self.updates = state["updates"]
        for mine, theirs in zip(self.averages, averages, strict=True):
            mine.copy_(theirs)


@contextmanager
def averaged(ema: Ema | None, trained: nn.Module) -> Iterator[None]:
    """Evaluation mode with the averaged weights, if there are any; restores mode and weights afterwards."""
    if ema is not None:
        ema.swap()
    trained.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trained.train()
        if ema is not None:
            ema.swap()
