"""One tree, one table: every code has a class, a gRPC status and an HTTP status of its own."""

from __future__ import annotations

import grpc
import pytest

from probewire.protos.errors import Code, ProbewireError, error_from_code


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_class_and_statuses(code: Code) -> None:
    error = error_from_code(code, "message", 2.5)
    assert isinstance(error, ProbewireError)
    assert type(error) is not ProbewireError
    assert (error.code, error.message, error.retry_after_s) == (code, "message", 2.5)
    assert grpc.StatusCode[code.name].value[0] == code.value.grpc
    assert 400 <= code.value.http <= 599


def test_statuses_are_distinct() -> None:
    assert len({code.value.grpc for code in Code}) == len(Code)
    assert len({code.value.http for code in Code}) == len(Code)
