"""Octavo's exceptions. Every message says what was wrong, what is allowed and what to change.

OctavoError
├── ConfigError (ValueError)          an engine option that cannot work
├── InvalidRequestError (ValueError)  one request that cannot be served; others are not affected
├── ModelLoadError                    a checkpoint that is missing, broken or not supported
│   └── UnsupportedModelError         a well-formed checkpoint of a family Octavo does not know
├── TokenizerError                    a tokenizer or chat template that is missing or broken
├── BackendUnavailableError           kernels that cannot run here, and why
│   └── KernelBuildError              the compiler refused; carries its output
├── OutOfMemoryError (MemoryError)    what did not fit, and the smallest change that does
├── EngineBusyError                   too many requests wait; says when to retry
├── EngineDeadError                   the engine stopped; later calls raise it too
├── LogError                          a file of events that is damaged, of a newer format, or no such file
└── ServerError                       another server cannot be reached or refused; carries its message
"""


class OctavoError(Exception):
    """Root of everything Octavo raises on purpose."""


class ConfigError(OctavoError, ValueError):
    """An engine option, or a pair of options, that cannot work."""


class InvalidRequestError(OctavoError, ValueError):
    """One request that cannot be served. Other requests are not affected."""


class ModelLoadError(OctavoError):
    """A checkpoint that is missing, truncated, malformed or inconsistent; names the file and the tensor or key."""


class UnsupportedModelError(ModelLoadError):
    """A well-formed checkpoint of an architecture, tensor type or option that Octavo does not implement."""


class TokenizerError(OctavoError):
    """A tokenizer or chat template that is missing, broken or refuses its input."""


class BackendUnavailableError(OctavoError):
    """A kernel backend that cannot run on this machine; the message gives the reason and the fix."""


class KernelBuildError(BackendUnavailableError):
    """The compiler refused the kernels; the message holds the command and the end of its output."""


class OutOfMemoryError(OctavoError, MemoryError):
    """Something did not fit; the message names it, the sizes and the smallest change that fits."""


class EngineBusyError(OctavoError):
    """A request rejected because too many wait, or because it waited too long; retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDeadError(OctavoError):
    """The engine stopped because of an internal error; the message holds its first cause."""


class LogError(OctavoError):
    """A file of events that cannot be read or replayed; names the file and what is wrong with it."""


class ServerError(OctavoError):
    """A server that our client cannot reach, or that answered with an error; the message quotes it."""


def reason_of(fault: BaseException) -> str:
    """Octavo's own message as it is; that of any other exception with its type."""
    return str(fault) if isinstance(fault, OctavoError) else f"{type(fault).__name__}: {fault}"
