"""What a client has seen of its request, so that a second run of it shows what is new and nothing twice."""

from diffsplat_client.contract import INDEX_OF, PREVIEW, STATUS

from diffsplat.serving.edge.wire import Response

_PASSING = {STATUS.name, PREVIEW.name}  # that a message says of its moment, not of the result
_ORDER = {"queued": 0, "denoising": 1, "finished": 2, "ended": 2}  # phases of STATUS


class SeenAnswers:
    """Filters the responses of a request, which Triton may have to compute more than once."""

    def __init__(self) -> None:
        self._repeats = False
        self._outputs: set[tuple[str, int]] = set()  # of results: name, and index of the result
        self._standing: dict[int, tuple[int, int]] = {}  # of each result: phase and step
        self._final = False

    def begin_again(self) -> None:
        """From now on the responses are those of another run."""
        self._repeats = True

    def take(self, response: Response) -> Response | None:
        """What the client has not seen of it; None if that is nothing."""
        status = response.read_json(STATUS.name)
        index = 0 if status is None else status.get("index", 0)
        seen = self._standing.get(index, (-1, 0))
        standing = seen if status is None else _standing(status.get("phase"), status.get("step"))
        outputs = {(name, response.read_int(INDEX_OF.get(name, ""))) for name in set(response.names) - _PASSING}
        new = response
        if self._repeats:
            known = {name for name, _ in outputs & self._outputs}
            if standing < seen or (standing == seen and standing[0] != _ORDER["queued"]):
                known |= _PASSING
            new = response.without(known)
            if not new.names and not (response.is_final and not self._final):
                return None
        self._standing[index] = max(seen, standing)
        self._outputs |= outputs
        self._final = self._final or response.is_final
        return new


def is_passing(response: Response) -> bool:
    """Whether it only says where a request stands, which the next one says anew."""
    status = response.read_json(STATUS.name)
    return _PASSING.issuperset(response.names) and status is not None and _standing(status.get("phase"), 0)[0] < 2


def _standing(phase: object, step: object) -> tuple[int, int]:
    order = _ORDER.get(phase, 0) if isinstance(phase, str) else 0
    return order, step if order == _ORDER["denoising"] and isinstance(step, int) else 0
