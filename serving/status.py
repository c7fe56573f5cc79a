"""ONE table: error class -> HTTP status, OpenAI type and code, gRPC status, metric label. Both edges read it."""

from dataclasses import dataclass
from typing import Any

import grpc

from burrstone.batching import errors


@dataclass(frozen=True, slots=True)
class WireStatus:
    """How one error class looks on each wire. `code` is the default when the error names none itself."""

    http: int
    type: str
    code: str | None
    grpc: grpc.StatusCode
    label: str


TABLE: dict[type[errors.ServeError], WireStatus] = {
    errors.InvalidRequest: WireStatus(
        400, "invalid_request_error", None, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"
    ),
    errors.ContextLengthExceeded: WireStatus(
        400,
        "invalid_request_error",
        "context_length_exceeded",
        grpc.StatusCode.INVALID_ARGUMENT,
        "context_length_exceeded",
    ),
    errors.Unauthenticated: WireStatus(
        401, "invalid_request_error", "invalid_api_key", grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"
    ),
    errors.PermissionDenied: WireStatus(
        403, "permission_error", "permission_denied", grpc.StatusCode.PERMISSION_DENIED, "permission_denied"
    ),
    errors.NotFound: WireStatus(404, "invalid_request_error", "not_found", grpc.StatusCode.NOT_FOUND, "not_found"),
    errors.MethodNotAllowed: WireStatus(
        405, "invalid_request_error", "method_not_allowed", grpc.StatusCode.UNIMPLEMENTED, "method_not_allowed"
    ),
    errors.Conflict: WireStatus(409, "invalid_request_error", "conflict", grpc.StatusCode.ABORTED, "conflict"),
    errors.BodyTooLarge: WireStatus(
        413, "invalid_request_error", "request_too_large", grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large"
    ),
    errors.UnsupportedMediaType: WireStatus(
        415,
        "invalid_request_error",
        "unsupported_media_type",
        grpc.StatusCode.INVALID_ARGUMENT,
        "unsupported_media_type",
    ),
    errors.Overloaded: WireStatus(
        429, "rate_limit_error", "rate_limit_exceeded", grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded"
    ),
    errors.ClientGone: WireStatus(499, "client_error", "client_closed", grpc.StatusCode.CANCELLED, "client_gone"),
    errors.InternalError: WireStatus(500, "server_error", "internal_error", grpc.StatusCode.INTERNAL, "internal"),
    errors.Unsupported: WireStatus(501, "server_error", "unsupported", grpc.StatusCode.UNIMPLEMENTED, "unsupported"),
    errors.NotReady: WireStatus(503, "server_error", "overloaded", grpc.StatusCode.UNAVAILABLE, "not_ready"),
    errors.DeadlineExceeded: WireStatus(
        504, "server_error", "deadline_exceeded", grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded"
    ),
}


def wire_status(error: errors.ServeError) -> WireStatus:
    """The row for this error's class, or for the nearest class above it."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return TABLE[errors.InternalError]


def error_body(error: errors.ServeError) -> dict[str, Any]:
    """OpenAI's envelope: {"error": {message, type, param, code}}; code is a string or null, never a number."""
    status = wire_status(error)
    return {
        "error": {
            "message": error.message,
            "type": status.type,
            "param": error.param,
            "code": error.code or status.code,
        }
    }
