"""Octavo: an LLM inference and serving engine that one person can read.

The public names. Each is loaded when it is first used: `import octavo` is instant, and an unused backend or server is
never imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM as AsyncLLM
    from octavo.config import EngineConfig as EngineConfig
    from octavo.engine.beam_search import BeamSearchOutput as BeamSearchOutput
    from octavo.engine.beam_search import BeamSearchParams as BeamSearchParams
    from octavo.engine.beam_search import BeamSearchSequence as BeamSearchSequence
    from octavo.engine.engine_args import EngineArgs as EngineArgs
    from octavo.errors import BackendUnavailableError as BackendUnavailableError
    from octavo.errors import ConfigError as ConfigError
    from octavo.errors import EngineBusyError as EngineBusyError
    from octavo.errors import EngineDeadError as EngineDeadError
    from octavo.errors import InvalidRequestError as InvalidRequestError
    from octavo.errors import KernelBuildError as KernelBuildError
    from octavo.errors import LogError as LogError
    from octavo.errors import ModelLoadError as ModelLoadError
    from octavo.errors import OctavoError as OctavoError
    from octavo.errors import OutOfMemoryError as OutOfMemoryError
    from octavo.errors import ServerError as ServerError
    from octavo.errors import TokenizerError as TokenizerError
    from octavo.errors import UnsupportedModelError as UnsupportedModelError
    from octavo.llm import LLM as LLM
    from octavo.logprobs import FlatLogprobs as FlatLogprobs
    from octavo.logprobs import Logprob as Logprob
    from octavo.lora_request import LoRARequest as LoRARequest
    from octavo.outputs import ClassificationOutput as ClassificationOutput
    from octavo.outputs import ClassificationRequestOutput as ClassificationRequestOutput
    from octavo.outputs import CompletionOutput as CompletionOutput
    from octavo.outputs import EmbeddingOutput as EmbeddingOutput
    from octavo.outputs import EmbeddingRequestOutput as EmbeddingRequestOutput
    from octavo.outputs import PoolingOutput as PoolingOutput
    from octavo.outputs import PoolingRequestOutput as PoolingRequestOutput
    from octavo.outputs import RequestOutput as RequestOutput
    from octavo.outputs import ScoringOutput as ScoringOutput
    from octavo.outputs import ScoringRequestOutput as ScoringRequestOutput
    from octavo.pooling_params import PoolingParams as PoolingParams
    from octavo.repetition import RepetitionDetectionParams as RepetitionDetectionParams
    from octavo.sampling_params import RequestOutputKind as RequestOutputKind
    from octavo.sampling_params import SamplingParams as SamplingParams
    from octavo.session import Session as Session
    from octavo.structured_outputs import StructuredOutputsParams as StructuredOutputsParams

_NAMES_IN = {
    "octavo.llm": ("LLM",),
    "octavo.async_llm": ("AsyncLLM",),
    "octavo.sampling_params": ("SamplingParams", "RequestOutputKind"),
    "octavo.pooling_params": ("PoolingParams",),
    "octavo.session": ("Session",),
    "octavo.repetition": ("RepetitionDetectionParams",),
    "octavo.lora_request": ("LoRARequest",),
    "octavo.structured_outputs": ("StructuredOutputsParams",),
    "octavo.logprobs": ("FlatLogprobs", "Logprob"),
    "octavo.outputs": (
        *("RequestOutput", "CompletionOutput"),
        *("EmbeddingRequestOutput", "EmbeddingOutput", "ScoringRequestOutput", "ScoringOutput"),
        *("ClassificationRequestOutput", "ClassificationOutput", "PoolingRequestOutput", "PoolingOutput"),
    ),
    "octavo.engine.beam_search": ("BeamSearchParams", "BeamSearchOutput", "BeamSearchSequence"),
    "octavo.config": ("EngineConfig",),
    "octavo.engine.engine_args": ("EngineArgs",),
    "octavo.errors": (
        *("OctavoError", "ConfigError", "InvalidRequestError", "ModelLoadError", "UnsupportedModelError"),
        *("TokenizerError", "BackendUnavailableError", "KernelBuildError", "OutOfMemoryError"),
        *("EngineBusyError", "EngineDeadError", "LogError", "ServerError"),
    ),
}
_HOME_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
