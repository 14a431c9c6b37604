"""Gathering: what has come of one request so far, and what it means: events, and a result for each of its seeds."""

import dataclasses

from diffsplat_client.contract import FRAMES, INDEX_OF, PACKAGE_INDEX, PREVIEW, RASTERIZE_INDEX, STATUS
from diffsplat_client.errors import ServerError
from diffsplat_client.events import Event, Finished, events_of
from diffsplat_client.failures import early_end_error
from diffsplat_client.formats import RAW
from diffsplat_client.generation import Generation, parse_generation, read_assets
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import Status, find_early_end, parse_status
from diffsplat_client.transport import Tensors

_OF_NOW = (STATUS.name, PREVIEW.name)  # tensors that belong to no result


class Gathering:
    """Collects the tensors of all responses.

    Triton numbers the outputs of an ensemble's stages as they arrive, so a stage that overtakes its own answer to an
    earlier progress message finds its tensors in that message's response: only names and indices can be trusted.
    """

    def __init__(self, request: GenerationRequest | None, request_id: str) -> None:
        """`request`: None where only its id is known."""
        self._request, self._request_id = request, request_id
        self._tensors: dict[int, Tensors] = {}  # of each result
        self._ends: dict[int, Status] = {}  # of each result: the status "finished" or "ended"
        self._given: set[int] = set()  # results that events have given

    def take(self, tensors: Tensors, started: float) -> list[Event]:
        """The events in a response: results too, but for the last one, which ends with the stream.

        `started`: monotonic time of the call. ServerError when the response breaks the contract.
        """
        status = parse_status(tensors[STATUS.name]) if STATUS.name in tensors else None
        for name, tensor in tensors.items():
            if name not in _OF_NOW:
                self._tensors.setdefault(_index(name, tensors, status), {})[name] = tensor
        if status is None:
            events = []
        else:
            events = events_of(status, tensors)
            if status.phase in ("finished", "ended"):
                self._ends[status.index] = status
        while len(self._given) < self._results - 1:
            complete = sorted(filter(self._is_complete, self._ends.keys() - self._given))
            if not complete:
                break
            events.append(self._finish(complete[0], started))
        return events

    def end(self, started: float) -> list[Event]:
        """The results that no event has given; the server has closed the stream: everything it had is here.

        Raises:
            TransportError: it ended early.
            ServerError: something is missing, or breaks the contract.
        """
        for index, status in self._ends.items():
            if (end := status.early_end or find_early_end(self._tensors.get(index, {}))) is not None:
                raise early_end_error(end)
        if len(self._ends) < max(self._results, 1):
            found = f" after {len(self._ends)} of {self._results} results" if self._ends else " without a result"
            raise ServerError(f"the server closed the stream{found}")
        return [self._finish(index, started) for index in sorted(self._ends.keys() - self._given)]

    @property
    def _results(self) -> int:
        return max((status.results for status in self._ends.values()), default=0)

    def _is_complete(self, index: int) -> bool:
        """Whether all stages have given what they have; each says so with its index."""
        stages = {RASTERIZE_INDEX.name, PACKAGE_INDEX.name}
        return self._ends[index].phase == "finished" and stages <= self._tensors.get(index, {}).keys()

    def _finish(self, index: int, started: float) -> Finished:
        self._given.add(index)
        return Finished(self._parse(self._tensors.pop(index, {}), self._ends[index], started))

    def _parse(self, tensors: Tensors, status: Status, started: float) -> Generation:
        if self._request is not None:
            return parse_generation(tensors, self._request, self._request_id, status, started)
        # what a result shows of its request: the files' formats, and frames without the poses that were asked for
        shown = GenerationRequest(formats=tuple(read_assets(tensors)) or (RAW,))
        result = parse_generation(tensors, shown, self._request_id, status, started)
        return dataclasses.replace(result, frames=tensors.get(FRAMES.name))


def _index(name: str, tensors: Tensors, status: Status | None) -> int:
    """The result that a tensor belongs to: its stage says which, or STATUS for those of `denoise`."""
    said = tensors.get(INDEX_OF.get(name, ""))
    if said is None:
        return 0 if status is None else status.index
    if said.size != 1:
        raise ServerError(f"{INDEX_OF[name]} has shape {list(said.shape)}: must be [1]")
    return int(said.item())
