"""Our errors as gRPC statuses with google.rpc details."""

import math
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from burrstone.batching.errors import ServeError
from burrstone.serving.status import wire_status

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
DOMAIN = "burrstone"
# The message stands in the details twice; all together they stay below 4 kB, which every proxy lets through.
_MAX_MESSAGE_BYTES = 1024
_MAX_PARAM_BYTES = 256
_MAX_REASON_BYTES = 128


def fail(context: Any, error: ServeError, request_id: str) -> str:
    """Make the call of this grpc.aio context end with the error's status. Returns its label for the metrics."""
    status = wire_status(error)
    context.set_trailing_metadata(((DETAILS_KEY, status_details(error, request_id)), (REQUEST_ID_KEY, request_id)))
    context.set_code(status.grpc)
    context.set_details(status_message(error))
    return status.label


def status_message(error: ServeError) -> str:
    """The error's message, bounded, as the status line carries it."""
    return _clip(error.message, _MAX_MESSAGE_BYTES)


def status_details(error: ServeError, request_id: str) -> bytes:
    """google.rpc.Status: ErrorInfo always, BadRequest when a field is named, RetryInfo when waiting helps."""
    status = wire_status(error)
    message = status_message(error)
    reason = _clip(error.code or status.code or status.type, _MAX_REASON_BYTES)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    info.metadata.update({"type": status.type, "http_status": str(status.http), "request_id": request_id})
    details: list[Message] = [info]
    if error.param is not None:
        param = _clip(error.param, _MAX_PARAM_BYTES)
        info.metadata["param"] = param
        violation = error_details_pb2.BadRequest.FieldViolation(field=param, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        details.append(retry)
    code = code_pb2.Code.Value(status.grpc.name)
    reply: Message = status_pb2.Status(code=code, message=message, details=[_pack(item) for item in details])
    return reply.SerializeToString()


def _clip(text: str, max_bytes: int) -> str:
    """At most `max_bytes` of UTF-8; what UTF-8 cannot hold (lone surrogates) becomes `?`."""
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
