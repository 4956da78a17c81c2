"""Every option is checked by its type, its error says what is allowed, and it takes vLLM's spellings."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.checked_fields import whole_number
from octavo.config import (
    BackendConfig,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ObserveConfig,
    SchedulerConfig,
)
from octavo.errors import ConfigError
from octavo.server.settings import ServerSettings
from octavo.server_config import AdmissionConfig, ServerConfig

SECTIONS = [
    ModelConfig,
    CacheConfig,
    SchedulerConfig,
    BackendConfig,
    ObserveConfig,
    AdmissionConfig,
    ServerConfig,
    ServerSettings,
    EngineConfig,
]
EVERY_FIELD = [(section, field.name) for section in SECTIONS for field in fields(section)]
OBJECTS = ("override_generation_config",)  # whose keys tests/engine/test_sampling_defaults.py tries


@pytest.mark.parametrize(("section", "name"), EVERY_FIELD, ids=lambda value: getattr(value, "__name__", value))
def test_no_field_takes_an_object_of_no_meaning(section: Any, name: str) -> None:
    for wrong in (object(), *([] if name in OBJECTS else [{"a": 1}]), [3], b"bytes", float("nan"), 1j):
        with pytest.raises(ConfigError, match=rf"^{name} is .*, allowed (is|are) "):
            section(**{name: wrong})


@pytest.mark.parametrize(("section", "name"), EVERY_FIELD, ids=lambda value: getattr(value, "__name__", value))
def test_none_is_the_default(section: Any, name: str) -> None:
    field = next(field for field in fields(section) if field.name == name)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    assert getattr(section(**{name: None}), name) == default


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (CacheConfig, {"enable_prefix_caching": "no"}, "enable_prefix_caching is 'no', allowed are True and False"),
    (CacheConfig, {"enable_prefix_caching": 1}, "enable_prefix_caching is 1, allowed are True and False"),
    (CacheConfig, {"block_size": True}, "block_size is True, allowed is a whole number"),
    (CacheConfig, {"block_size": 16.0}, "block_size is 16.0, allowed is a whole number"),
    (CacheConfig, {"kv_cache_memory_bytes": 2**63}, f"kv_cache_memory_bytes is {2**63}, allowed are a whole number"),
    (CacheConfig, {"kv_cache_dtype": "nvfp4"}, "kv_cache_dtype='nvfp4' is not supported yet: KV blocks of 8 bits"),
    (ModelConfig, {"dtype": "float8"}, "dtype is 'float8', allowed are 'auto', 'float32', 'bfloat16', 'float16',"),
    (ModelConfig, {"max_model_len": "long"}, "max_model_len is 'long', allowed are a whole number (16, '4k', '1.5G')"),
    (ModelConfig, {"max_model_len": -2}, "max_model_len is -2, allowed is 1 to 2147483647"),
    (ObserveConfig, {"event_log_size": -1}, "event_log_size is -1, allowed is 0 or more"),
    (ObserveConfig, {"max_logprobs": -5}, "max_logprobs is -5, allowed is -1 or more"),
    (SchedulerConfig, {"max_num_seqs": 2**40}, f"max_num_seqs is {2**40}, allowed is 1 to 1048576"),
    (
        CacheConfig,
        {"num_gpu_blocks_override": 2**40},
        f"num_gpu_blocks_override is {2**40}, allowed is 2 to 2147483647",
    ),
    (BackendConfig, {"num_threads": 2**40}, f"num_threads is {2**40}, allowed is 1 to 65536"),
    (ModelConfig, {"load_format": "pt"}, "load_format='pt' is not supported yet: 'auto' maps"),
    (ModelConfig, {"modle": "x"}, "ModelConfig has no option 'modle'; did you mean 'model'?"),
    (BackendConfig, {"attention_backend": "FLASHINFER"}, "attention_backend='FLASHINFER' is not supported yet: a GPU"),
    (SchedulerConfig, {"scheduling_policy": "lifo"}, "scheduling_policy is 'lifo', allowed are 'fcfs' and 'priority'"),
    (SchedulerConfig, {"max_num_seqs": 10**400}, "max_num_seqs is a number of 1329 bits, allowed are a whole"),
    (ServerSettings, {"api_key": [1]}, "api_key is [1], allowed is a list of texts"),
]


@pytest.mark.parametrize(("section", "given", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refuses(section: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**given)
    assert str(caught.value).startswith(message)


class Dtype:
    """Reads as torch.bfloat16 does."""

    def __repr__(self) -> str:
        return "torch.bfloat16"


Dtype.__module__ = "torch"

TAKEN: list[tuple[Any, dict[str, Any], Any]] = [
    (ModelConfig, {"dtype": "half"}, "float16"),
    (ModelConfig, {"dtype": "float"}, "float32"),
    (ModelConfig, {"dtype": Dtype()}, "bfloat16"),
    (ModelConfig, {"max_model_len": "auto"}, None),
    (ModelConfig, {"max_model_len": -1}, None),
    (ModelConfig, {"max_model_len": "4k"}, 4000),
    (ModelConfig, {"max_model_len": "32K"}, 32768),
    (ModelConfig, {"max_model_len": np.int64(7)}, 7),
    (ModelConfig, {"model": Path("a/b")}, "a/b"),
    (CacheConfig, {"kv_cache_dtype": "half"}, "float16"),
    (CacheConfig, {"kv_cache_dtype": "fp8_e4m3"}, "fp8"),
    (CacheConfig, {"gpu_memory_utilization": 1}, 1.0),
    (CacheConfig, {"kv_cache_memory_bytes": "1.5G"}, 3 * 2**29),
    (BackendConfig, {"attention_backend": "TRITON_ATTN"}, "triton"),
    (ServerSettings, {"api_key": ["a", "b"]}, ("a", "b")),
    (ServerSettings, {"api_key": "a"}, ("a",)),
]


@pytest.mark.parametrize(("section", "given", "meaning"), TAKEN, ids=lambda value: str(value)[:40])
def test_takes_other_spellings(section: Any, given: dict[str, Any], meaning: Any) -> None:
    (name,) = given
    found = getattr(section(**given), name)
    assert found == meaning
    assert type(found) is type(meaning)


def test_numbers_of_people() -> None:
    texts = ["16", "32k", "32K", "1.5G", "-1", "0.5k", "1.5", "4kk", "", "k", "1e3", "9" * 50]
    numbers = [16, 32000, 32768, 3 * 2**29, -1, 500, None, None, None, None, None, None]
    assert [whole_number(text) for text in texts] == numbers
