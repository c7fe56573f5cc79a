"""The one table from errors to the wires."""

from collections.abc import Iterator

import grpc
import pytest

from burrstone.batching import errors
from burrstone.serving.status import TABLE, error_body, wire_status


def tree(cls: type[errors.ServeError] = errors.ServeError) -> Iterator[type[errors.ServeError]]:
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from tree(below)


ALL = sorted(tree(), key=lambda cls: cls.__name__)


def test_every_error_has_its_row() -> None:
    assert set(TABLE) == set(ALL)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    assert {cls.__name__ for cls in ALL if f"\u2500\u2500 {cls.__name__}" in errors.__doc__} == {
        c.__name__ for c in ALL
    }


def test_labels_tell_errors_apart() -> None:
    labels = [status.label for status in TABLE.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("cls", ALL)
def test_both_wires_agree_on_whose_fault_it_is(cls: type[errors.ServeError]) -> None:
    """A client that retries on UNAVAILABLE or RESOURCE_EXHAUSTED must retry on the HTTP status too, and the reverse."""
    status = wire_status(cls("x"))
    assert 400 <= status.http < 600 and status.http != 422
    assert status.grpc not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert (status.grpc is grpc.StatusCode.UNAVAILABLE) == (status.http == 503)
    assert (status.grpc is grpc.StatusCode.INTERNAL) == (status.http == 500)
    assert (status.type == "server_error") == (status.http >= 500)


def test_a_subclass_without_a_row_has_its_parents() -> None:
    class FarTooLong(errors.ContextLengthExceeded):
        pass

    class Novel(errors.ServeError):
        pass

    assert wire_status(FarTooLong("x")).code == "context_length_exceeded"
    assert wire_status(Novel("x")).http == 500


@pytest.mark.parametrize(("given", "code"), [(None, "not_found"), ("model_not_found", "model_not_found")])
def test_the_envelope_is_openais(given: str | None, code: str) -> None:
    error = errors.NotFound("There is no such model.", param="model", code=given)
    assert error_body(error) == {
        "error": {
            "message": "There is no such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": code,
        }
    }
