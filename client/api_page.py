"""`python client/api_page.py [--write]`: docs/api.md, made of the wire contract; without --write only compared."""

import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from diffsplat_client import contract, errors
from diffsplat_client.contract import (
    CONTRACT_VERSION,
    END_STATES,
    ENSEMBLE,
    ERROR_CODES,
    GAUSSIAN_COLUMNS,
    MODELS,
    POSE_COLUMNS,
    RECONSTRUCTION,
    TensorSpec,
)
from diffsplat_client.errors import DiffSplatError
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import OPTIONS
from diffsplat_client.status import PHASES, Status

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PARTS = Path(__file__).with_name("api_page.md")  # the prose, with {names} where tables go
_INPUT_HEAD = ("tensor", "type", "shape", "what", "values")
_WHAT = {  # what the help of no option says
    "PROMPT": "what the object should be",
    "FRAME_POSES": "a camera for each frame",
}


def page() -> str:
    """The whole page."""
    columns = [f"{name} {part.start}:{part.stop}" for name, part in GAUSSIAN_COLUMNS.items()]
    parts = {
        "version": str(CONTRACT_VERSION),
        "generation_inputs": _table(
            ("tensor", "type", "shape", "what", "values"), map(_input, MODELS[ENSEMBLE].inputs)
        ),
        "generation_outputs": _tensors(MODELS[ENSEMBLE].outputs),
        "reconstruction_inputs": _tensors(MODELS[RECONSTRUCTION].inputs),
        "reconstruction_outputs": _tensors(MODELS[RECONSTRUCTION].outputs),
        "reconstruction_fields": _table(("field", "meaning"), _commented_fields(ReconstructionRequest)),
        "gaussian_columns": ", ".join(columns),
        "pose_columns": ", ".join(POSE_COLUMNS),
        "status_fields": _table(("field", "meaning"), _commented_fields(Status)),
        "phases": ", ".join(f"`{phase}`" for phase in PHASES),
        "end_states": ", ".join(f"`{state}`" for state in END_STATES),
        "error_types": _table(("error type", "gRPC's code", "the Python client raises"), _error_types()),
    }
    text = PARTS.read_text()
    for name, part in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    return text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def _tensors(specs: Iterable[TensorSpec]) -> str:
    comments = dict(re.findall(r'TensorSpec\("(\w+)".*\).*?#\s*(.*)', inspect.getsource(contract)))
    rows = ((f"`{s.name}`", s.datatype, _shape(s), comments.get(s.name, "")) for s in specs)
    return _table(("tensor", "type", "shape", "what"), rows)


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("n" if dim < 0 else str(dim) for dim in spec.dims) + "]"


def _input(spec: TensorSpec) -> tuple[str, ...]:
    """A tensor of a generation, with what the option of the same name says."""
    about = OPTIONS[spec.name.lower()].metadata
    values = ""
    if about.get("choices"):
        values = ", ".join(f"`{choice}`" for choice in about["choices"] if choice)
    elif about.get("limits"):
        values = f"{about['limits'][0]:g} .. {about['limits'][1]:g}"
    return f"`{spec.name}`", spec.datatype, _shape(spec), str(about.get("help") or _WHAT.get(spec.name, "")), values


def _commented_fields(kind: type) -> Iterable[tuple[str, str]]:
    """Fields of a dataclass, and the comments behind them."""
    for name, comment in re.findall(r"^    (\w+): .*?(?:#\s*(.*))?$", inspect.getsource(kind), re.MULTILINE):
        if name != "early_end":  # its fields stand in the JSON themselves
            yield f"`{name}`", comment


def _error_types() -> Iterable[tuple[str, str, str]]:
    raised = {kind.error_type: kind for kind in vars(errors).values() if _is_error(kind)}
    raised["OVERLOADED"] = errors.ServerUnavailableError
    for name in dict.fromkeys((*ERROR_CODES, *raised)):
        kind = raised.get(name)
        meaning = "" if kind is None else f"`{kind.__name__}`: {(kind.__doc__ or '').splitlines()[0]}"
        yield f"`{name}`", ERROR_CODES.get(name, ""), meaning


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, DiffSplatError) and kind is not DiffSplatError


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is the one that the contract makes."""
    if arguments == ["--write"]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE} is not what the contract makes: python client/api_page.py --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
