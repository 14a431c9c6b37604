"""What the answers to a request tell of its stages: how long each took, and when the answer was there."""

from dataclasses import dataclass

from diffsplat_client.contract import INDEX_OF, RECONSTRUCT_TIMINGS, STATUS, TIMING_TENSORS

from diffsplat.serving.edge.wire import Response

_TIMINGS = (*TIMING_TENSORS, RECONSTRUCT_TIMINGS)


@dataclass(frozen=True)
class StageReport:
    """The times in one answer.

    Attributes:
        run: of the server, counted from the request's first as 1.
        index: of the request's results.
        received_s: when the edge had the answer, on the clock of the job.
        durations_ms: milliseconds by stage, and by wait in front of one.
    """

    run: int
    index: int
    received_s: float
    durations_ms: dict[str, float]


class StageReports:
    """All of one request.

    Attributes:
        reports: in the order of their arrival.
        steps: of each result; None while not known.
    """

    def __init__(self) -> None:
        self.reports: list[StageReport] = []
        self.steps: int | None = None

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds by stage and wait; of several results, those that came last."""
        merged: dict[str, float] = {}
        for report in self.reports:
            merged |= report.durations_ms
        return merged

    def note(self, response: Response, run: int, now_s: float) -> None:
        """An answer has come."""
        status = response.read_json(STATUS.name) or {}
        self.steps = status.get("steps", self.steps)
        for spec in _TIMINGS:
            if durations_ms := response.read_json(spec.name):
                name = INDEX_OF.get(spec.name)
                index = status.get("index", 0) if name is None else response.read_int(name)
                self.reports.append(StageReport(run, index, now_s, durations_ms))
