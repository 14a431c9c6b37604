"""Where the stages of a request lie in time, from what is known: how long each took, and when its answer came.

Each wait is measured from the moment when the stage before sent its work, so that waits and stages follow each other
without gaps, and the two stages that share the work of `decode` begin to wait at the same moment. That fixes all of
them against each other. As a whole they lie as late as the answers allow: no stage ends after its answer has come.
Times that overlap, as when a busy machine lets a stage end long after it has sent its work, may need more room than
there was: what would lie after the last answer is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffsplat.serving.edge.stage_reports import StageReport

# A stage, or the wait before it -> what it follows: the one of these that the request has
FOLLOWS: dict[str, tuple[str, ...]] = {
    "encode": (),
    "queued": ("encode",),
    "denoise": ("queued",),
    "queued_decode": ("denoise",),
    "decode": ("queued_decode",),
    "reconstruct": (),
    "queued_rasterize": ("decode", "reconstruct"),
    "rasterize": ("queued_rasterize",),
    "queued_package": ("decode", "reconstruct"),
    "package": ("queued_package",),
}
_SHARED = "encode"  # by all results of a request


@dataclass(frozen=True)
class StageSpan:
    """A stage, or the wait before it.

    Attributes:
        name: one of FOLLOWS.
        start_ns, duration_ns: nanoseconds, on the clock of the job; durations are measured, unless cut off.
        run, index: as in StageReport.
    """

    name: str
    start_ns: int
    duration_ns: int
    run: int
    index: int


def place_stages(reports: Sequence[StageReport], sent_s: Sequence[float]) -> list[StageSpan]:
    """Lay the stages out.

    Args:
        reports: of one request.
        sent_s: when each of its runs began, on the clock of the job; no stage of a run lies before.
    """
    spans = []
    for run, began_s in enumerate(sent_s, start=1):
        spans += _place_run([report for report in reports if report.run == run], run, in_ns(began_s))
    return spans


def in_ns(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds * 1e9)


def _place_run(reports: list[StageReport], run: int, began_ns: int) -> list[StageSpan]:
    durations_ns: dict[int, dict[str, int]] = {}  # by result
    for report in reports:
        durations_ns.setdefault(report.index, {}).update(_durations(report))
    starts_ns = {index: _starts(durations) for index, durations in durations_ns.items()}
    latest_ns = [  # that the first stage may have started, by each answer
        in_ns(report.received_s)
        - max((starts_ns[report.index][name] + duration for name, duration in _durations(report).items()), default=0)
        for report in reports
    ]
    first_ns = max(began_ns, min(latest_ns, default=began_ns))
    room_ns = max((in_ns(report.received_s) for report in reports), default=first_ns) - first_ns
    return [
        StageSpan(
            name,
            first_ns + min(start_ns, room_ns),
            min(durations_ns[index][name], max(room_ns - start_ns, 0)),
            run,
            index,
        )
        for position, (index, starts) in enumerate(starts_ns.items())
        for name, start_ns in starts.items()
        if position == 0 or name != _SHARED
    ]


def _durations(report: StageReport) -> dict[str, int]:
    return {name: round(ms * 1e6) for name, ms in report.durations_ms.items() if name in FOLLOWS}


def _starts(durations_ns: dict[str, int]) -> dict[str, int]:
    """Start of each stage, counted from the first one's; those that the request does not have take no time."""
    starts_ns: dict[str, int] = {}
    ends_ns: dict[str, int] = {}
    for name, before in FOLLOWS.items():  # nothing in it follows a later entry
        starts_ns[name] = max((ends_ns[other] for other in before), default=0)
        ends_ns[name] = starts_ns[name] + durations_ns.get(name, 0)
    return {name: starts_ns[name] for name in FOLLOWS if name in durations_ns}
