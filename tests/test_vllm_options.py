"""The table of vLLM's options that Octavo lacks: which values pass, the errors for others, and that it is correct."""

from dataclasses import fields

import pytest

from octavo import SamplingParams, vllm_options
from octavo.cli.words import FLAG_ALIASES
from octavo.engine.options import _SECTIONS, engine_config
from octavo.errors import ConfigError
from octavo.server.settings import ServerSettings
from octavo.server_config import AdmissionConfig, ServerConfig
from octavo.vllm_options import ENGINE_OPTIONS, SAMPLING_FIELDS, SERVER_FLAGS, SERVER_ONLY

ASKS_FOR_NOTHING = {
    "decode_context_parallel_size": 1,
    "quantization": None,
    "enable_lora_bias": False,
    "trust_remote_code": True,
    "multi_step_stream_outputs": True,
    "swap_space": 4,
    "hf_overrides": {},
    "distributed_executor_backend": "uni",
    "cpu_offload_gb": 0.0,
    "limit_mm_per_prompt": {"image": 1},
    "task": "auto",
    "disable_log_stats": True,
}
ASKS_FOR_SOMETHING = {
    "decode_context_parallel_size": 2,
    "quantization_config": "awq",
    "enable_lora_bias": True,
    "hf_overrides": {"rope_theta": 1.0},
    "cpu_offload_gb": 4,
    "task": "embed",
    "speculative_config": {"method": "ngram"},
    "enable_sleep_mode": 1,
}


@pytest.mark.parametrize("name", ASKS_FOR_NOTHING)
def test_what_asks_for_nothing_is_accepted(name: str) -> None:
    assert engine_config(**{name: ASKS_FOR_NOTHING[name]}) == engine_config()


@pytest.mark.parametrize("name", ASKS_FOR_SOMETHING)
def test_what_is_not_there_is_refused_by_name_with_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine_config(**{name: ASKS_FOR_SOMETHING[name]})
    assert str(caught.value).startswith(f"{name}={ASKS_FOR_SOMETHING[name]!r} is not supported yet: ")
    assert str(caught.value).endswith(ENGINE_OPTIONS[name].instead)


def test_a_true_is_not_the_number_one() -> None:
    with pytest.raises(ConfigError, match="decode_context_parallel_size=True is not supported yet"):
        engine_config(decode_context_parallel_size=True)


@pytest.mark.parametrize(
    ("name", "text", "passes"),
    [
        ("decode_context_parallel_size", "1", True),
        ("decode_context_parallel_size", "2", False),
        ("quantization_config", "None", True),
        ("enable_lora_bias", "false", True),
        ("data_parallel_backend", "mp", True),
        ("hf_overrides", "{}", True),
        ("hf_overrides", '{"a": 1}', False),
    ],
)
def test_the_command_lines_texts_are_read(name: str, text: str, passes: bool) -> None:
    assert ENGINE_OPTIONS[name].text_asks_for_nothing(text) is passes


def test_nothing_that_octavo_has_is_in_the_tables() -> None:
    ours = {field.name for section in _SECTIONS.values() for field in fields(section)}
    servers = {field.name for section in (ServerConfig, AdmissionConfig, ServerSettings) for field in fields(section)}
    assert not set(ENGINE_OPTIONS) & (ours | servers)
    assert not set(SERVER_FLAGS) & (ours | servers | set(ENGINE_OPTIONS))
    assert not set(SERVER_ONLY) & ours
    assert not set(SAMPLING_FIELDS) & {field.name for field in fields(SamplingParams)}
    assert set(FLAG_ALIASES.values()) <= set(ENGINE_OPTIONS) | ours


def test_every_sentence_can_end_a_message() -> None:
    tables = (ENGINE_OPTIONS, SERVER_ONLY, SERVER_FLAGS, SAMPLING_FIELDS, vllm_options.CALL_ARGUMENTS)
    sentences = [entry.instead for table in tables for entry in table.values()] + list(vllm_options.METHODS.values())
    for sentence in sentences:
        assert sentence[-1].isalnum()
        assert "\n" not in sentence
