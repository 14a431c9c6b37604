"""What the denoise engine does, on Triton's metrics page: Triton's own metrics end when a request is queued."""

import time
from typing import Any

import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import END_STATES

from diffsplat.serving.engine.interface import EngineLoad, EngineObserver

# A metric is set through another process, which costs as much as `CANCEL_CHECK_INTERVAL_S` (`engine/interface.py`)
# says: of the steps only so many are observed
STEP_SAMPLE_INTERVAL_S = 0.1
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


class EngineMetrics(EngineObserver):
    """Gauges and histograms of one version of the model.

    Histograms count observations too: `diffsplat_denoise_request_seconds_count{end_state}` is the number of requests
    by how they ended.
    """

    def __init__(self, version: str, max_batch: int) -> None:
        """Register all of them, at 0."""
        self._version = version
        self._families: list[Any] = []  # kept: a metric goes when its family is collected
        self._load = self._gauges()
        batch = tuple(float(size) for size in range(1, max_batch + 1))
        self._batch_size = self._histogram("batch_size", "Requests of a step, a sample of all steps", batch)
        self._step_s = self._histogram("step_seconds", "Time of a step, of the same sample", STEP_BUCKETS_S)
        self._queue_s = self._histogram("queue_seconds", "Time from arrival to start", REQUEST_BUCKETS_S)
        self._first_s = self._histogram(
            "first_progress_seconds", "Time from arrival to the end of the first step", REQUEST_BUCKETS_S
        )
        self._request_s = self._histograms(
            "request_seconds", "Time from arrival to the end, by end state", REQUEST_BUCKETS_S, END_STATES
        )
        self._previews = self._counters("previews", "Previews that were due", ("made", "skipped"))
        self._sampled_s = -STEP_SAMPLE_INTERVAL_S

    def load(self, load: EngineLoad) -> None:
        """Three gauges."""
        for gauge, requests in zip(self._load, load, strict=True):
            gauge.set(requests)

    def stepped(self, requests: int, seconds: float) -> None:
        """At most one step in `STEP_SAMPLE_INTERVAL_S` is observed."""
        now_s = time.monotonic()
        if now_s - self._sampled_s >= STEP_SAMPLE_INTERVAL_S:
            self._sampled_s = now_s
            self._batch_size.observe(requests)
            self._step_s.observe(seconds)

    def started(self, queued_s: float) -> None:
        """One observation for each request."""
        self._queue_s.observe(queued_s)

    def progressed(self, seconds: float) -> None:
        """One observation for each request that makes a step."""
        self._first_s.observe(seconds)

    def previewed(self, made: bool) -> None:
        """Two counters."""
        self._previews["made" if made else "skipped"].increment(1)

    def ended(self, end_state: str, seconds: float) -> None:
        """One observation for each request."""
        self._request_s[end_state].observe(seconds)

    def _family(self, name: str, description: str, kind: Any) -> Any:
        self._families.append(
            pb_utils.MetricFamily(name=f"diffsplat_denoise_{name}", description=description, kind=kind)
        )
        return self._families[-1]

    def _gauges(self) -> list[Any]:
        family = self._family("requests", "Requests in the denoise engine by state", pb_utils.MetricFamily.GAUGE)
        return [family.Metric(labels={"state": state, "version": self._version}) for state in EngineLoad._fields]

    def _counters(self, name: str, description: str, states: tuple[str, ...]) -> dict[str, Any]:
        family = self._family(name, description, pb_utils.MetricFamily.COUNTER)
        return {state: family.Metric(labels={"state": state, "version": self._version}) for state in states}

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Any:
        family = self._family(name, description, pb_utils.MetricFamily.HISTOGRAM)
        return family.Metric(labels={"version": self._version}, buckets=list(buckets))

    def _histograms(
        self, name: str, description: str, buckets: tuple[float, ...], states: tuple[str, ...]
    ) -> dict[str, Any]:
        family = self._family(name, description, pb_utils.MetricFamily.HISTOGRAM)
        labels = {state: {"end_state": state, "version": self._version} for state in states}
        return {state: family.Metric(labels=labels[state], buckets=list(buckets)) for state in states}
