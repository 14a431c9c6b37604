"""The ledger of answers: what it counts, refuses, and gets back from other processes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest

from diffsplat.serving.stage_models.answers import (
    GRACE_S,
    MAX_HOLD_S,
    AnswerBytes,
    AnswerLedger,
    AnswersFullError,
    answer_bytes,
    return_share,
)
from diffsplat.stages.envelope import Deadlines, Envelope
from tests.serving.processes import TIMEOUT_S


def wait_for(ledger: AnswerLedger, total_bytes: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while ledger.total_bytes != total_bytes:
        assert time.monotonic() < deadline, ledger.total_bytes
        time.sleep(0.001)


def test_an_answer_has_frames_splats_and_a_file() -> None:
    poses = np.tile(np.float32([10, 0, 1.4, 1]), (23, 1))
    request = GenerationRequest("x", frame_poses=poses, frame_size=2048, formats=("ply",))
    assert answer_bytes(request, 1000) == (23 * 2048 * 2048 * 3, 1000 * (56 + 80))
    assert answer_bytes(GenerationRequest("x"), 1000) == (0, 56_000)


def test_the_sum_is_limited_and_shares_come_back() -> None:
    ledger = AnswerLedger(10_000_000)
    first = ledger.reserve(AnswerBytes(4_000_000, 2_000_000))
    ledger.reserve(AnswerBytes(0, 4_000_000))
    with pytest.raises(AnswersFullError, match=r"answer of 0.1 MB .* the 10.0 MB .* at most 10.0 MB"):
        ledger.reserve(AnswerBytes(0, 100_000))
    with pytest.raises(InvalidRequestError, match=r"frame_poses x frame_size: .* 10.1 MB, .* at most 10.0 MB"):
        ledger.reserve(AnswerBytes(10_100_000, 0))
    with pytest.raises(InvalidRequestError, match=r"num_seeds x frame_poses x frame_size: .* 12.0 MB"):
        ledger.reserve(AnswerBytes(2_000_000, 1_000_000), answers=4)
    return_share(first, "rasterize")
    wait_for(ledger, 6_000_000)
    return_share(first, "rasterize")  # once is enough
    return_share(first, "package")
    wait_for(ledger, 4_000_000)
    third = ledger.reserve(AnswerBytes(3_000_000, 3_000_000))
    return_share(third)  # there will be no answer
    wait_for(ledger, 4_000_000)
    ledger.release(ledger.reserve(AnswerBytes(1, 2)))
    assert ledger.total_bytes == 4_000_000


def test_nobody_else_is_disturbed() -> None:
    """A ticket of a ledger that is gone, and one that was never given out."""
    ledger = AnswerLedger(10)
    ledger.reserve(AnswerBytes(5, 5))
    return_share(f"{'0' * 16}.{'1' * 16}", "package")
    return_share(f"{ledger._name}.{'1' * 16}", "package")
    return_share(f"{ledger._name}.{'1' * 16}", "nonsense")
    with pytest.raises(AnswersFullError):
        ledger.reserve(AnswerBytes(1, 0))


def test_another_process_gives_back() -> None:
    ledger = AnswerLedger(10)
    ticket = ledger.reserve(AnswerBytes(5, 5))
    # stages are children of one server; this child must take itself for a sibling
    code = "import os, sys; os.getppid = lambda: int(sys.argv[2])\n"
    code += "from diffsplat.serving.stage_models.answers import return_share; return_share(sys.argv[1], 'package')"
    subprocess.run([sys.executable, "-c", code, ticket, str(os.getppid())], check=True)
    wait_for(ledger, 5)


@pytest.mark.parametrize(("end_by_s", "held_s"), [(None, MAX_HOLD_S), (30.0, 30.0 + GRACE_S)])
def test_a_share_of_a_dead_stage_is_free_in_the_end(end_by_s: float | None, held_s: float) -> None:
    now = [0.0]
    ledger = AnswerLedger(56 * 10, clock=lambda: now[0])
    envelope = Envelope(GenerationRequest("x"), deadlines=Deadlines(None, end_by_s))
    assert ledger.reserve_for(envelope, 10).ticket is not None
    now[0] = held_s - 1
    with pytest.raises(AnswersFullError):
        ledger.reserve_for(envelope, 10)
    now[0] = held_s + 1
    ledger.reserve_for(envelope, 10)
