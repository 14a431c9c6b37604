"""A gauge of the requests a stage works on, since Triton's own metrics do not tell when a server is idle."""

import threading
from typing import Any

import triton_python_backend_utils as pb_utils


class InFlightGauge:
    """`diffsplat_stage_requests{stage, version, instance}`: within `with gauge:` a request is in flight.

    It sets its own count and adds nothing, since the process that a reload replaces has the same metric for a while.
    """

    def __init__(self, stage: str, version: str, instance: str) -> None:
        # kept: a metric goes when its family is collected
        self._family: Any = pb_utils.MetricFamily(
            name="diffsplat_stage_requests",
            description="Requests that a stage works on; calls without anything to do are not counted",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._metric: Any = self._family.Metric(labels={"stage": stage, "version": version, "instance": instance})
        self._lock, self._requests = threading.Lock(), 0
        self._metric.set(0)

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(self, *exc_info: object) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._requests += by
            self._metric.set(self._requests)
