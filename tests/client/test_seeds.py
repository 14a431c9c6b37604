"""Several objects of one request: `num_seeds`."""

from typing import Any

import numpy as np
import pytest
from diffsplat_client import Client, Finished, InvalidRequestError, Progress, RequestCancelledError, ServerError
from diffsplat_client.transport import Tensors

MAX_SEED = 2**63 - 1


def number(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def status(fakes: Any, phase: str, index: int, step: int = 0, **more: object) -> Tensors:
    tensors: Tensors = fakes.status(phase, step, index=index, results=2, **{"seed": 7 + index, **more})
    return tensors


def packaged(index: int) -> Tensors:
    return {"GAUSSIANS": np.full((index + 1, 14), 0.5, np.float32), "INDEX_PACKAGE": number(index)}


def drawn(index: int) -> Tensors:
    return {"FRAMES": np.full((1, 16, 16, 3), index, np.uint8), "INDEX_RASTERIZE": number(index)}


POSES = np.array([[10, 0, 1.4, 1]], np.float32)
ASKED = {"num_seeds": 2, "frame_poses": POSES, "frame_size": 16}


def test_each_result_comes_when_it_is_complete_and_the_last_with_the_end(fakes) -> None:
    """The stages overtake each other: tensors of one result come with messages about the other."""
    fake = fakes.transport(
        status(fakes, "denoising", 0, 1),
        status(fakes, "denoising", 1, 1),
        {**status(fakes, "finished", 1, 3), **drawn(1), "TIMINGS": fakes.text({"denoise": 11})},
        {**status(fakes, "denoising", 0, 2), **packaged(1)},
        {**status(fakes, "finished", 0, 3), "TIMINGS": fakes.text({"denoise": 10})},
        {**packaged(0), **drawn(0)},
    )
    with Client(transport=fake).stream("x", **ASKED) as events:
        seen = list(events)
    kinds = [(type(event), event.result.index if isinstance(event, Finished) else event.index) for event in seen]
    assert kinds == [(Progress, 0), (Progress, 1), (Progress, 0), (Finished, 1), (Finished, 0)]
    for event in seen:
        if isinstance(event, Finished):
            result = event.result
            assert len(result.cloud) == result.index + 1 and result.seed == 7 + result.index
            assert result.frames is not None and (result.frames == result.index).all()
            assert result.timings_ms["denoise"] == 10 + result.index
    assert not fake.stopped


def test_all_of_them_by_index(fakes) -> None:
    fake = fakes.transport(
        *({**status(fakes, "finished", index, 3), **packaged(index), **drawn(index)} for index in (1, 0))
    )
    results = Client(transport=fake).generate_all("x", **ASKED)
    assert [(result.index, result.seed) for result in results] == [(0, 7), (1, 8)]
    results = Client(transport=fake).attach("mine").results()
    assert [len(result.cloud) for result in results] == [1, 2]


def test_generate_makes_one_object_and_says_so_before_anything_is_sent(fakes) -> None:
    fake = fakes.transport(fakes.finished())
    with pytest.raises(InvalidRequestError, match="num_seeds = 2: must be 1 for one object; generate_all"):
        Client(transport=fake).generate("x", num_seeds=2)
    assert not fake.calls
    assert len(Client(transport=fake).generate_all("x")) == 1


def test_a_request_stands_where_its_last_result_does(fakes) -> None:
    """A kept request tells first what is kept: the results that are there."""
    first = {**status(fakes, "finished", 0, 3), **packaged(0), **drawn(0)}
    for phase in ("denoising", "finished"):
        fake = fakes.transport(first, status(fakes, phase, 1, 2))
        stands = Client(transport=fake).attach("mine").status()
        assert stands is not None and (stands.phase, stands.index) == (phase, 1)


def test_the_failure_of_one_ends_the_request(fakes) -> None:
    end = {"end_state": "cancelled", "error_type": "CANCELLED", "message": "the request was cancelled"}
    fake = fakes.transport(
        {**status(fakes, "finished", 0, 3), **packaged(0), **drawn(0)}, status(fakes, "ended", 1, 2, **end)
    )
    with Client(transport=fake).stream("x", **ASKED) as events:
        assert isinstance(next(events), Finished)
        with pytest.raises(RequestCancelledError):
            next(events)
        assert list(events) == []


def test_an_early_end_of_a_later_stage_counts_for_its_result(fakes) -> None:
    end = fakes.text({"end_state": "failed", "error_type": "INTERNAL", "message": "rasterize failed"})
    fake = fakes.transport(
        {**status(fakes, "finished", 0, 3), **packaged(0), **drawn(0)},
        {**status(fakes, "finished", 1, 3), **packaged(1), "INDEX_RASTERIZE": number(1), "EARLY_END_RASTERIZE": end},
    )
    with pytest.raises(ServerError, match="rasterize failed"):
        Client(transport=fake).generate_all("x", **ASKED)


def test_a_stream_that_lacks_a_result_is_the_servers_error(fakes) -> None:
    fake = fakes.transport({**status(fakes, "finished", 0, 3), **packaged(0), **drawn(0)})
    with pytest.raises(ServerError, match="closed the stream after 1 of 2 results"):
        Client(transport=fake).generate_all("x", **ASKED)


def test_an_index_that_is_none_is_the_servers_error(fakes) -> None:
    fake = fakes.transport({**status(fakes, "finished", 0, 3), **packaged(0), "INDEX_PACKAGE": np.zeros(2, np.int32)})
    with pytest.raises(ServerError, match=r"INDEX_PACKAGE has shape \[2\]: must be \[1\]"):
        Client(transport=fake).generate_all("x", **ASKED)


def test_the_last_seed_must_be_one() -> None:
    client = Client(transport=None)
    with pytest.raises(InvalidRequestError, match=f"seed = {MAX_SEED} and num_seeds = 2: the last seed"):
        client.generate_all("x", seed=MAX_SEED, num_seeds=2)
