"""The error map: every exception becomes a status with details, and a bug never shows its stack."""

from __future__ import annotations

import logging

import pytest
from google.rpc import code_pb2, error_details_pb2

from optiq_core.errors import AdapterError, DataError
from optiq_daemon import errors

CASES = [
    (errors.InvalidRequestError.of("f", "wrong"), "INVALID_ARGUMENT", error_details_pb2.BadRequest),
    (errors.NotFoundError("adapter", "n", "none"), "NOT_FOUND", error_details_pb2.ResourceInfo),
    (errors.AlreadyExistsError("adapter", "n", "there"), "ALREADY_EXISTS", error_details_pb2.ResourceInfo),
    (errors.ConflictError("adapter", "n", "changed"), "ABORTED", error_details_pb2.ResourceInfo),
    (errors.RefusedError("not now"), "FAILED_PRECONDITION", None),
    (errors.OutOfRangeError("compacted"), "OUT_OF_RANGE", None),
    (errors.UnavailableError("soon"), "UNAVAILABLE", error_details_pb2.RetryInfo),
    (errors.QueueFullError("requests", "full"), "RESOURCE_EXHAUSTED", error_details_pb2.QuotaFailure),
    (AdapterError("SHAPE_MISMATCH", "wrong", file="f", expected="a", found="b"), "FAILED_PRECONDITION", None),
    (DataError("train.jsonl: line 3"), "INVALID_ARGUMENT", error_details_pb2.BadRequest),
]


@pytest.mark.parametrize(("error", "code", "detail"), CASES)
def test_every_error_has_a_status_with_details(error: Exception, code: str, detail: type | None) -> None:
    status = errors.status_of(error)
    assert code_pb2.Code.Name(status.code) == code
    assert status.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.domain == "optiq" and info.reason
    if detail is not None:
        assert any(packed.Is(detail.DESCRIPTOR) for packed in status.details)


def test_a_bug_is_internal_with_an_id_that_the_log_knows(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("secret prompt text")
    except KeyError as error:
        with caplog.at_level(logging.ERROR):
            status = errors.status_of(error, "/optiq.v1.X/Y")
    assert status.code == code_pb2.INTERNAL
    assert "secret" not in status.message and "Traceback" not in status.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.metadata["error_id"] in status.message
    assert info.metadata["error_id"] in caplog.text and "Traceback" in caplog.text


def test_an_adapter_error_keeps_its_fields() -> None:
    error = AdapterError("SHAPE_MISMATCH", "wrong", file="f", tensor="t", expected="[1]", found="[2]")
    info = error_details_pb2.ErrorInfo()
    assert errors.status_of(error).details[0].Unpack(info)
    assert info.reason == "SHAPE_MISMATCH"
    assert dict(info.metadata) == {"message": "wrong", "file": "f", "tensor": "t", "expected": "[1]", "found": "[2]"}
