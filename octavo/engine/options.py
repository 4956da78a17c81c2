"""An engine's options by name, sorted into sections. A parent of engines needs no more: this imports no engine."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from octavo.config import BackendConfig, CacheConfig, EngineConfig, ModelConfig, ObserveConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.lora_config import LoRAConfig
from octavo.shown import suggestion
from octavo.vllm_options import ENGINE_OPTIONS, SERVER_ONLY, why_not

_SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "backend": BackendConfig,
    "lora": LoRAConfig,
    "observe": ObserveConfig,
}

_VLLM_OPTIONS = ENGINE_OPTIONS | SERVER_ONLY


def engine_config(**options: Any) -> EngineConfig:
    """Sort options into sections by field name. Raises ConfigError for an unknown name, unless it is one of vLLM's and
    asks for nothing, and TokenizerError for a broken chat template, before a model loads."""
    sections = {}
    for section_name, section in _SECTIONS.items():
        names = {field.name for field in fields(section)} & set(options)
        sections[section_name] = section(**{name: options.pop(name) for name in names})
    if (refusal := why_not(_VLLM_OPTIONS, options)) is not None:
        raise ConfigError(refusal)
    for unknown in options.keys() - _VLLM_OPTIONS.keys():
        known = [field.name for section in _SECTIONS.values() for field in fields(section)]
        raise ConfigError(f"there is no engine option {unknown!r}; {suggestion(unknown, known)}")
    config = EngineConfig(**sections)
    _check_names(config.model)
    return config


def _check_names(model: ModelConfig) -> None:
    """Refuse what would otherwise be refused when the model has been loaded. Imports only what a given name needs."""
    if model.chat_template is not None:
        from octavo.text.tokenizer import check_chat_template

        check_chat_template(model.chat_template)
    if model.tokenizer is not None:
        from octavo.models.located import check_tokenizer_name

        check_tokenizer_name(model.tokenizer)
    if model.reasoning_parser is not None:
        from octavo.text.answers.style import answer_style

        answer_style(None, None, model.reasoning_parser)  # refuses an unknown name
    if model.generation_config != "auto" or model.override_generation_config is not None:
        from octavo.engine.sampling_defaults import sampling_defaults

        sampling_defaults(model, {})  # refuses what cannot be a default
