"""The one error tree.

    ServeError
    ├── InvalidRequest            the caller must change the request
    │   └── ContextLengthExceeded prompt + max tokens do not fit
    ├── Unauthenticated           no key, or a wrong one
    ├── PermissionDenied          a right key that may not do this
    ├── NotFound                  no such route, model or stored response
    ├── MethodNotAllowed
    ├── Conflict
    ├── BodyTooLarge
    ├── UnsupportedMediaType
    ├── Overloaded                try later; carries retry_after_s
    ├── ClientGone                nobody is listening any more
    ├── InternalError             our fault
    ├── Unsupported               this server or model has no such feature
    ├── NotReady                  starting, draining, or the engine died
    └── DeadlineExceeded          the caller's deadline, or the server's, has passed

What each becomes on the wire is decided in one table: burrstone.serving.status.
UsageError stands beside the tree: it is for the person at the command line, and never reaches a wire.
"""


class UsageError(ValueError):
    """A command or a file that cannot be carried out; the message names the field, the rule and the fix."""


class ServeError(Exception):
    """A failure with a message for the caller. `param` names the request field, `code` is OpenAI's string code."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequest(ServeError):
    pass


class ContextLengthExceeded(InvalidRequest):
    pass


class Unauthenticated(ServeError):
    pass


class PermissionDenied(ServeError):
    pass


class NotFound(ServeError):
    pass


class MethodNotAllowed(ServeError):
    pass


class Conflict(ServeError):
    pass


class BodyTooLarge(ServeError):
    pass


class UnsupportedMediaType(ServeError):
    pass


class Overloaded(ServeError):
    pass


class ClientGone(ServeError):
    pass


class InternalError(ServeError):
    pass


class Unsupported(ServeError):
    pass


class NotReady(ServeError):
    pass


class DeadlineExceeded(ServeError):
    pass
