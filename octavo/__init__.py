"""Octavo: an LLM inference and serving engine that one person can read.

The public face. Names are loaded when first used, so that `import octavo` is instant and what is not
used (a backend, a server) is never imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octavo.config import EngineConfig as EngineConfig
    from octavo.engine.async_engine import AsyncLLM as AsyncLLM
    from octavo.engine.engine_args import EngineArgs as EngineArgs
    from octavo.errors import BackendUnavailableError as BackendUnavailableError
    from octavo.errors import ConfigError as ConfigError
    from octavo.errors import EngineBusyError as EngineBusyError
    from octavo.errors import EngineDeadError as EngineDeadError
    from octavo.errors import InvalidRequestError as InvalidRequestError
    from octavo.errors import KernelBuildError as KernelBuildError
    from octavo.errors import ModelLoadError as ModelLoadError
    from octavo.errors import OctavoError as OctavoError
    from octavo.errors import OutOfMemoryError as OutOfMemoryError
    from octavo.errors import ServerError as ServerError
    from octavo.errors import TokenizerError as TokenizerError
    from octavo.errors import UnsupportedModelError as UnsupportedModelError
    from octavo.llm import LLM as LLM
    from octavo.outputs import CompletionOutput as CompletionOutput
    from octavo.outputs import FlatLogprobs as FlatLogprobs
    from octavo.outputs import Logprob as Logprob
    from octavo.outputs import RequestOutput as RequestOutput
    from octavo.sampling_params import RequestOutputKind as RequestOutputKind
    from octavo.sampling_params import SamplingParams as SamplingParams

_HOME_OF = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.engine.async_engine",
    "SamplingParams": "octavo.sampling_params",
    "RequestOutputKind": "octavo.sampling_params",
    "RequestOutput": "octavo.outputs",
    "CompletionOutput": "octavo.outputs",
    "FlatLogprobs": "octavo.outputs",
    "Logprob": "octavo.outputs",
    "EngineConfig": "octavo.config",
    "EngineArgs": "octavo.engine.engine_args",
    "OctavoError": "octavo.errors",
    "ConfigError": "octavo.errors",
    "InvalidRequestError": "octavo.errors",
    "ModelLoadError": "octavo.errors",
    "UnsupportedModelError": "octavo.errors",
    "TokenizerError": "octavo.errors",
    "BackendUnavailableError": "octavo.errors",
    "KernelBuildError": "octavo.errors",
    "OutOfMemoryError": "octavo.errors",
    "EngineBusyError": "octavo.errors",
    "EngineDeadError": "octavo.errors",
    "ServerError": "octavo.errors",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
