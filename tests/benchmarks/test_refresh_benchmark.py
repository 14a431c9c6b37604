"""What `benchmarks.refresh` makes of answers: mixed objects, and the time without a version."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.refresh import Answer, Change, rows_of

OLD, NEW = np.zeros((3, 14), np.float32), np.ones((3, 14), np.float32)
TRUTHS = {"old": OLD, "new": NEW}


def answer(began_s: float, version: int, splats: np.ndarray, digest: str) -> Answer:
    served = SimpleNamespace(version=version, bundle_digest=digest)
    result: Any = SimpleNamespace(served=served, cloud=SimpleNamespace(to_array=lambda: splats))
    return Answer(began_s, result)


def test_the_time_without_a_version_is_what_exceeds_the_usual_wait_while_versions_change() -> None:
    changes = [Change("no change", 0.0, 10.0, 10.0), Change("refresh", 10.0, 30.0, 20.0)]
    times = [*np.arange(0.0, 20.0, 0.5), 20.2, 22.7, 23.0, *np.arange(23.2, 30.0, 0.4)]
    answers = [
        answer(time, 1 if time < 22 else 2, OLD if time < 22 else NEW, "old" if time < 22 else "new") for time in times
    ]
    rows = rows_of(changes, answers, TRUTHS)
    assert [row["mixed"] for row in rows] == [0, 0] and [row["versions"] for row in rows] == [[1], [1, 2]]
    assert rows[0]["without_version_s"] == 0.0 and rows[1]["usual_wait_s"] == 0.5
    assert rows[1]["longest_wait_s"] == 2.5 and rows[1]["without_version_s"] == 2.0
    assert sum(row["answers"] for row in rows) >= len(times)


def test_an_object_of_another_version_than_its_answer_names_is_mixed() -> None:
    changes = [Change("no change", 0.0, 1.0, 1.0)]
    given = [
        answer(0.1, 1, OLD, "old"),
        answer(0.2, 2, OLD, "new"),
        answer(0.3, 3, NEW, "lost"),
        answer(0.4, 2, NEW, "new"),
    ]
    assert rows_of(changes, given, TRUTHS)[0]["mixed"] == 2
