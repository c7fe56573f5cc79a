"""Our errors as gRPC statuses with google.rpc details."""

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from burrstone.batching.errors import ServeError
from burrstone.serving.status import wire_status

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "burrstone"
_MAX_MESSAGE_CHARS = 1024  # details share the 8 KiB that clients take as trailing metadata


def status_details(error: ServeError, request_id: str) -> bytes:
    """google.rpc.Status: ErrorInfo always, BadRequest when a field is named, RetryInfo when waiting helps."""
    status = wire_status(error)
    message = error.message[:_MAX_MESSAGE_CHARS]
    info = error_details_pb2.ErrorInfo(reason=(error.code or status.code or status.type), domain=DOMAIN)
    info.metadata.update({"type": status.type, "http_status": str(status.http), "request_id": request_id})
    details = [info]
    packed: list[any_pb2.Any] = []
    if error.param is not None:
        info.metadata["param"] = error.param[:_MAX_MESSAGE_CHARS]
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param[:_MAX_MESSAGE_CHARS], description=message
        )
        packed.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
        packed.append(_pack(retry))
    code = code_pb2.Code.Value(status.grpc.name)
    reply = status_pb2.Status(code=code, message=message, details=[*(_pack(item) for item in details), *packed])
    serialized: bytes = reply.SerializeToString()
    return serialized


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
