"""WorkSize: how much there is to do for a request. Imports nothing, so that the engine needs no torch."""

from typing import NamedTuple


class WorkSize(NamedTuple):
    """How much the denoiser has to do for a request."""

    steps: int
    rows: int = 1  # in the network's batch, at every step
