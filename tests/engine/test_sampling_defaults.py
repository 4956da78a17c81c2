"""Where sampling defaults come from: the model's files, another folder or vLLM, and what an option changes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import ConfigError
from octavo.config import ModelConfig
from octavo.engine.options import engine_config
from octavo.engine.sampling_defaults import sampling_defaults
from octavo.errors import ModelLoadError
from octavo.sampling_params import SamplingParams

RECOMMENDED = {"temperature": 0.6, "top_k": 20, "max_tokens": 40}


def defaults(**options: Any) -> SamplingParams:
    return sampling_defaults(ModelConfig(**options), RECOMMENDED)


def test_the_models_own_are_kept_or_left_for_vllms() -> None:
    assert defaults() == SamplingParams(**RECOMMENDED)
    assert defaults(generation_config="vllm") == SamplingParams()


def test_another_folder_has_them_in_place_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 0.5, "eos_token_id": 3}))
    assert defaults(generation_config=str(tmp_path)) == SamplingParams(top_p=0.5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 5}))
    with pytest.raises(ModelLoadError, match="top_p cannot be a default: top_p is 5"):
        engine_config(generation_config=str(tmp_path))


def test_an_option_changes_some_of_them() -> None:
    changed: dict[str, Any] = {"temperature": 0.2, "max_new_tokens": 9, "top_k": None}
    for given in (changed, json.dumps(changed)):
        assert defaults(override_generation_config=given) == SamplingParams(temperature=0.2, max_tokens=9)
    alone = defaults(generation_config="vllm", override_generation_config={"min_p": 0.1})
    assert alone == SamplingParams(min_p=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_config": "vlm"}, "generation_config is 'vlm', allowed are 'auto' .* 'vllm' .* and a folder with"),
        ({"override_generation_config": "{"}, "override_generation_config is '{', which is not JSON"),
        ({"override_generation_config": "[1]"}, r"is '\[1\]', allowed is an object such as"),
        ({"override_generation_config": {"top_kk": 1}}, "has the key 'top_kk', allowed are .*; did you mean 'top_k'"),
        ({"override_generation_config": {"top_p": 2}}, "top_p cannot be a default: top_p is 2, allowed"),
        ({"override_generation_config": {"max_new_tokens": "9"}}, "max_new_tokens cannot be a default"),
    ],
)
def test_what_cannot_be_a_default_is_refused_before_a_model_loads(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config(model="none/such", **options)
