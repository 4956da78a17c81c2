"""What Octavo raises. Every message says what was wrong, what is allowed and what to change.

OctavoError
├── ConfigError (ValueError)          an engine option that cannot work
├── InvalidRequestError (ValueError)  one request that cannot be served; the engine lives on
├── ModelLoadError                    a checkpoint that is missing, broken or not supported
│   └── UnsupportedModelError         a well-formed checkpoint of a family Octavo does not know
├── TokenizerError                    a tokenizer or chat template that is missing or broken
├── BackendUnavailableError           kernels that cannot run here, and why
│   └── KernelBuildError              the compiler refused; carries its output
├── OutOfMemoryError (MemoryError)    what did not fit, and the smallest change that does
├── EngineBusyError                   too many requests wait; says when to come again
├── EngineDeadError                   the engine stopped; later calls say why
└── ServerError                       a server elsewhere that is not there, or refused; carries its words
"""


class OctavoError(Exception):
    """Root of everything Octavo raises on purpose."""


class ConfigError(OctavoError, ValueError):
    """An engine option, or a pair of options, that cannot work."""


class InvalidRequestError(OctavoError, ValueError):
    """One request that cannot be served. Other requests are not touched."""


class ModelLoadError(OctavoError):
    """A checkpoint that is missing, truncated, malformed or inconsistent; names the file and the tensor or key."""


class UnsupportedModelError(ModelLoadError):
    """A well-formed checkpoint of an architecture, tensor type or option that Octavo does not implement."""


class TokenizerError(OctavoError):
    """A tokenizer or chat template that is missing, broken or refuses its input."""


class BackendUnavailableError(OctavoError):
    """A kernel backend that cannot run on this machine; the message holds the reason and its cure."""


class KernelBuildError(BackendUnavailableError):
    """The compiler refused the kernels; the message holds the command and the end of its output."""


class OutOfMemoryError(OctavoError, MemoryError):
    """Something did not fit; the message names it, the sizes and the smallest change that fits."""


class EngineBusyError(OctavoError):
    """A request that was turned away because too many wait, or that waited too long. Nothing is wrong with it:
    it may be sent again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDeadError(OctavoError):
    """The engine stopped because of an internal fault; the message holds the first cause."""


class ServerError(OctavoError):
    """A server that a client of ours cannot reach, or that answered with an error; the message holds its words."""
