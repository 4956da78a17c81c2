"""The public names: adding or removing one changes this list."""

import pytest

import octavo

PUBLIC_NAMES = {
    "AsyncLLM",
    "BackendUnavailableError",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EngineArgs",
    "EngineConfig",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineBusyError",
    "EngineDeadError",
    "InvalidRequestError",
    "KernelBuildError",
    "LogError",
    "LLM",
    "LoRARequest",
    "FlatLogprobs",
    "Logprob",
    "ModelLoadError",
    "OctavoError",
    "OutOfMemoryError",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "RepetitionDetectionParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "ServerError",
    "Session",
    "StructuredOutputsParams",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
}


def test_the_public_names_are_these() -> None:
    assert set(octavo.__all__) == PUBLIC_NAMES
    assert dir(octavo) == sorted(PUBLIC_NAMES)


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES - {"__version__"}))
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(octavo, name)
    assert value.__name__ == name
    assert value.__doc__


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'LMM'; it has .*LLM"):
        octavo.LMM  # noqa: B018


def test_every_error_is_public() -> None:
    from octavo import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= PUBLIC_NAMES
