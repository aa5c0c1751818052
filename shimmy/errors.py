"""Every error a caller can see, and nothing about how a dialect writes it down.

    ShimmyError
    ├── BadRequest            400  the request cannot be honoured as written
    │   ├── ContextExceeded   400  the prompt is longer than the context
    │   └── TemplateFailed    400  the chat template refused or broke on the messages
    ├── Unauthorized          401  a key is required
    ├── Forbidden             403  a web page or a host name that is not allowed
    ├── RemovalFailed         403  a model's files cannot be deleted
    ├── NotFound              404  no such route or object
    │   ├── ModelNotFound     404  no such model, or a name that fits several
    │   └── PreviousResponseNotFound  404  a response that a request goes on from, or one before it
    ├── MethodNotAllowed      405
    ├── ModelUnloaded         409  another client unloaded the model before it was loaded; ask again
    ├── RequestTimeout        408  the request did not come to its end in time
    ├── PayloadTooLarge       413
    ├── UnsupportedEncoding   415  the body has an unknown compression
    ├── Overloaded            503  the queue is full; try again later
    ├── ModelUnavailable      503  the model could not be loaded
    │   ├── OutOfMemory       503  it takes more memory than there is
    │   └── OutOfDeviceMemory 503  a device that was to compute it has too little memory
    ├── WorkerDied            502  the worker ended while the job was running
    ├── PullFailed            502  a model could not be fetched from where it is
    ├── ShuttingDown          503
    └── Internal              500  a bug of ours

`from_code` rebuilds an error that a worker sent over the wire.
"""

from typing import ClassVar

NO_MORE_THREADS = (
    "the system allows no more threads: raise `ulimit -u` or the container's limit of processes (pids), or update the "
    "container runtime, whose seccomp profile may be older than the system call clone3"
)
NO_MORE_PROCESSES = (
    "the system allows no more processes: raise `ulimit -u` or the container's limit of processes (pids)"
)


class ShimmyError(Exception):
    """An error with an HTTP status, a stable `code` and OpenAI's `type`; `param` names the request field at fault."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadRequest(ShimmyError):
    status = 400
    code = "invalid_value"
    type = "invalid_request_error"


class ContextExceeded(BadRequest):
    code = "context_length_exceeded"


class TemplateFailed(BadRequest):
    code = "chat_template_failed"


class Unauthorized(ShimmyError):
    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"


class Forbidden(ShimmyError):
    status = 403
    code = "forbidden"
    type = "invalid_request_error"


class RemovalFailed(ShimmyError):
    status = 403
    code = "removal_failed"
    type = "invalid_request_error"


class NotFound(ShimmyError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class PreviousResponseNotFound(NotFound):
    code = "previous_response_not_found"


class MethodNotAllowed(ShimmyError):
    """`allowed` lists the methods the route takes, as an `Allow` header does."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, allowed: str = "") -> None:
        super().__init__(message, param=param)
        self.allowed = allowed


class ModelUnloaded(ShimmyError):
    status = 409
    code = "model_unloaded"
    type = "invalid_request_error"


class RequestTimeout(ShimmyError):
    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class PayloadTooLarge(ShimmyError):
    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class UnsupportedEncoding(ShimmyError):
    status = 415
    code = "unsupported_encoding"
    type = "invalid_request_error"


class Overloaded(ShimmyError):
    status = 503
    code = "overloaded"


class ModelUnavailable(ShimmyError):
    status = 503
    code = "model_unavailable"
    is_death = False  # whether its worker ended in the middle of the load


class OutOfMemory(ModelUnavailable):
    code = "out_of_memory"


class OutOfDeviceMemory(ModelUnavailable):
    code = "out_of_device_memory"


class WorkerDied(ShimmyError):
    status = 502
    code = "worker_died"


class PullFailed(ShimmyError):
    status = 502
    code = "pull_failed"


class ShuttingDown(ShimmyError):
    status = 503
    code = "shutting_down"


class Internal(ShimmyError):
    """A bug of ours. The message names no paths and no internals; the log has the traceback."""


def _tree(root: type[ShimmyError]) -> dict[str, type[ShimmyError]]:
    classes = {root.code: root}
    for child in root.__subclasses__():
        classes |= _tree(child)
    return classes


BY_CODE = _tree(ShimmyError)


def from_code(code: str, message: str, param: str | None = None) -> ShimmyError:
    """The error of the tree with this `code`; an unknown code is an `Internal` with the same message."""
    return BY_CODE.get(code, Internal)(message, param=param)
