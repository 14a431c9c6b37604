"""Errors of requests as Triton and its stages tell them, and as the edge tells its own."""

import re
from typing import NamedTuple

from diffsplat_client.contract import EARLY_ENDS, ERROR_CODES, STATUS

from diffsplat.serving.drain import DRAINING
from diffsplat.serving.edge.admission import wants_empty_final
from diffsplat.serving.edge.refusal import RefusedError
from diffsplat.serving.edge.wire import FINAL_RESPONSE, Response

_END_STATES = {"CANCELLED": "cancelled", "DEADLINE_EXCEEDED": "expired"}  # of an error type; all others are failures
_ERROR_TYPE = re.compile(rf"\b({'|'.join(ERROR_CODES)}): ")
_DEAD_STAGE = re.compile(r"[Ss]tub process .*is not (healthy|ready)")


class End(NamedTuple):
    """Why a request did not finish: a state of contract.END_STATES, a key of contract.ERROR_CODES, and the message."""

    state: str
    error_type: str
    error: str


def end_in(response: Response) -> End | None:
    """The end of the request that a response tells; None if it tells none."""
    if response.error:
        found = _ERROR_TYPE.search(response.error)
        return end_of(found[1] if found else "INTERNAL", response.error)
    told = None
    for name in (STATUS.name, *(spec.name for spec in EARLY_ENDS)):
        end = response.read_json(name)
        if end is not None and "end_state" in end:
            told = End(str(end["end_state"]), str(end.get("error_type")), str(end.get("message")))
    return told


def end_of(error_type: str, error: str) -> End:
    """The end by an error."""
    return End(_END_STATES.get(error_type, "failed"), error_type, error)


def refusal(error: RefusedError) -> Response:
    """An error of the edge's own, as Triton would send it."""
    response = Response(error=f"{error.code}: {error}")
    if error.head is not None:
        response.head.id, response.head.model_name = error.head.id, error.head.model_name
        if wants_empty_final(error.head):
            response.head.parameters[FINAL_RESPONSE].bool_param = True
    return response


def server_fault(response: Response) -> str:
    """Why a response means that the server is broken or about to end, and not the request; empty if it does not."""
    if _DEAD_STAGE.search(response.error):
        return "a stage of it died"
    if response.error.startswith("UNAVAILABLE") and DRAINING in response.error:
        return "it restarts"
    status = response.read_json(STATUS.name)
    if status is not None and status.get("phase") == "ended" and status.get("error_type") == "UNAVAILABLE":
        return "it was shut down"
    return ""
