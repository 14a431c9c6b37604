"""What a client has seen of its request, so that a second run of it shows what is new and nothing twice."""

from diffsplat_client.contract import PREVIEW, STATUS

from diffsplat.serving.edge.wire import Response

_PASSING = {STATUS.name, PREVIEW.name}  # that a message says of its moment, not of the result
_ORDER = {"queued": 0, "denoising": 1, "finished": 2, "ended": 2}  # phases of STATUS


class SeenAnswers:
    """Filters the responses of a request, which Triton may have to compute more than once."""

    def __init__(self) -> None:
        self._repeats = False
        self._outputs: set[str] = set()  # of the result
        self._standing = (-1, 0)  # phase and step
        self._final = False

    def begin_again(self) -> None:
        """From now on the responses are those of another run."""
        self._repeats = True

    def take(self, response: Response) -> Response | None:
        """What the client has not seen of it; None if that is nothing."""
        status = response.read_json(STATUS.name)
        standing = self._standing if status is None else _standing(status.get("phase"), status.get("step"))
        new = response
        if self._repeats:
            known = self._outputs.intersection(response.names)
            if standing < self._standing or (standing == self._standing and standing[0] != _ORDER["queued"]):
                known |= _PASSING
            new = response.without(known)
            if not new.names and not (response.is_final and not self._final):
                return None
        self._standing = max(self._standing, standing)
        self._outputs |= set(response.names) - _PASSING
        self._final = self._final or response.is_final
        return new


def is_passing(response: Response) -> bool:
    """Whether it only says where a request stands, which the next one says anew."""
    status = response.read_json(STATUS.name)
    return _PASSING.issuperset(response.names) and status is not None and _standing(status.get("phase"), 0)[0] < 2


def _standing(phase: object, step: object) -> tuple[int, int]:
    order = _ORDER.get(phase, 0) if isinstance(phase, str) else 0
    return order, step if order == _ORDER["denoising"] and isinstance(step, int) else 0
