"""Client and AsyncClient, their streams and their handles have the same surface, so that they cannot drift apart."""

import inspect

import pytest
from diffsplat_client import (
    AsyncClient,
    AsyncGenerationHandle,
    AsyncGenerationStream,
    Client,
    GenerationHandle,
    GenerationStream,
)

TWINS = [(Client, AsyncClient), (GenerationStream, AsyncGenerationStream), (GenerationHandle, AsyncGenerationHandle)]
WORDS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}


def surface(kind: type) -> dict[str, tuple[object, str]]:
    """Name -> parameters and the docstring's first line, for all that users may call."""
    found = {}
    for name, member in inspect.getmembers(kind):
        if name in (*WORDS, *WORDS.values()) or not name.startswith("_"):
            about = (inspect.getdoc(member) or "").splitlines()[0]
            parameters = None if isinstance(member, property) else inspect.signature(member).parameters
            found[name] = (parameters and [str(p) for p in parameters.values() if p.name != "self"], about)
    return found


@pytest.mark.parametrize("blocking, asynchronous", TWINS, ids=lambda kind: kind.__name__)
def test_twins_have_the_same_methods(blocking: type, asynchronous: type) -> None:
    expected = {WORDS.get(name, name): about for name, about in surface(blocking).items()}
    actual = surface(asynchronous)
    assert sorted(actual) == sorted(expected)
    for name, (parameters, about) in actual.items():
        assert parameters == expected[name][0], name
        if name not in ("__aenter__", "__aiter__"):  # the stream's says when it sends; what iterates says how
            assert about == expected[name][1], name


def test_they_take_the_same_arguments() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    assert Client.__init__ is AsyncClient.__init__
