"""One row per option of a request: default, help text and range, for checks and the command line."""

import dataclasses
from typing import TYPE_CHECKING, Any

from diffsplat_client.request_checks import check_choice, check_file, check_flag, check_list, check_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def option(
    default: Any,
    help: str,
    *,
    limits: tuple[float, float] | None = None,
    integer: bool = False,
    choices: tuple[str, ...] | None = None,
    several: bool = False,
    file: bool = False,
) -> Any:
    """A dataclass field with the metadata that `check_options` and the command line read; limits are inclusive.

    `several`: the value is a list of `choices`.
    """
    metadata = {
        "help": help,
        "limits": limits,
        "integer": integer,
        "choices": choices,
        "several": several,
        "file": file,
    }
    return dataclasses.field(default=default, repr=not file, metadata=metadata)


def check_options(request: "DataclassInstance") -> None:
    """Check every field made by `option` on its own; InvalidRequestError names the first bad one."""
    for field in dataclasses.fields(request):
        value, about = getattr(request, field.name), field.metadata
        if value is None and field.default is None:
            continue
        if about.get("several"):
            check_list(field.name, value, about["choices"])
        elif about.get("choices"):
            check_choice(field.name, value, about["choices"])
        elif about.get("limits"):
            check_number(field.name, value, *about["limits"], integer=about["integer"])
        elif about.get("file"):
            check_file(field.name, value)
        elif isinstance(field.default, bool):
            check_flag(field.name, value)
