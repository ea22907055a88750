"""The one error tree of Outdraft; it knows what went wrong, and nothing of HTTP.

The server maps each class to a status in one table (`server/errors.py`).

    OutdraftError
    ├── ConfigError                    a flag, YAML key or field that cannot be honoured
    ├── InvalidRequestError            the caller's request cannot be served as asked
    │   ├── ContextLengthExceededError     prompt and answer do not fit the model's context
    │   ├── ModelNotFoundError             the request names a model that is not served here
    │   ├── RequestTooLargeError           the request has more bytes than the server takes
    │   └── RefusedRequestError            the request crashed the engine before
    ├── ModelLoadError                 the checkpoint could not be loaded
    │   ├── ModelNotSupportedError         the architecture cannot be served; names it and why
    │   └── DraftMismatchError             the draft does not fit the target; says how they differ
    ├── OutOfMemoryError               the KV cache or the weights do not fit
    └── EngineError                    the engine failed while serving
        ├── DeadlinePassedError            the request's time was over before its answer was
        ├── EngineNotReadyError            requests are not welcome now; still loading
        │   ├── EngineRestartingError          it crashed, and is being started anew
        │   └── EngineDrainingError            it is being shut down
        └── EngineDeadError                the engine is gone; every waiter is told
"""


class OutdraftError(Exception):
    """Any failure that Outdraft reports on purpose."""


class ConfigError(OutdraftError):
    """A configuration value cannot be honoured; the message names the key and the limit."""


class InvalidRequestError(OutdraftError):
    """A request cannot be served as asked.

    Args:
        message: what failed, the number that broke the limit, and what to do.
        param: the request field at fault, as it is called on the wire.
        code: a machine-readable reason, as OpenAI's error body has it.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceededError(InvalidRequestError):
    """The prompt, or the prompt and the answer asked for, exceed the model's context."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that this server does not serve."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class RequestTooLargeError(InvalidRequestError):
    """The request has more bytes than the server takes."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_too_large")


class RefusedRequestError(InvalidRequestError):
    """The request was being computed when the engine crashed, and is not let in again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_crashed_engine")


class ModelLoadError(OutdraftError):
    """A checkpoint could not be loaded."""


class ModelNotSupportedError(ModelLoadError):
    """The architecture cannot be served; the message names it and the reason."""


class DraftMismatchError(ModelLoadError):
    """The draft model does not fit the target; the message says how they differ."""


class OutOfMemoryError(OutdraftError):
    """The weights or the KV cache do not fit in the memory at hand."""


class EngineError(OutdraftError):
    """The engine failed while serving a request."""


class DeadlinePassedError(EngineError):
    """The time that a request had is over; what was generated of it is given up."""


class EngineNotReadyError(EngineError):
    """The engine is still loading, or does not take requests now.

    Attributes:
        code: a machine-readable reason.
        retry_after_s: seconds after which it may be worth asking again.
    """

    code = "engine_loading"
    retry_after_s = 5


class EngineRestartingError(EngineNotReadyError):
    """The engine crashed or hung, and is being started anew."""

    code = "engine_restarting"


class EngineDrainingError(EngineNotReadyError):
    """The engine is being shut down: no new requests, and in the end no old ones."""

    code = "engine_draining"


class EngineDeadError(EngineError):
    """The engine process is gone; the request cannot be finished here."""
