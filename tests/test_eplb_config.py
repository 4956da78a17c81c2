"""The options enable_eplb and eplb_config: vLLM's keys and defaults, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import BackendConfig
from octavo.eplb_config import EPLBConfig, read_eplb_config
from octavo.errors import ConfigError

ON = {"enable_eplb": True, "enable_expert_parallel": True, "tensor_parallel_size": 2}


def test_defaults_and_json() -> None:
    assert BackendConfig(**ON).eplb == EPLBConfig() == read_eplb_config("{}")
    asked = {"window_size": 10, "step_interval": 20, "num_redundant_experts": 4, "log_balancedness": True}
    assert BackendConfig(**ON, eplb_config=json.dumps(asked)).eplb == EPLBConfig(**asked)
    assert BackendConfig().eplb is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ON | {"enable_expert_parallel": False}, "enable_expert_parallel is False: set it to True, with tensor_parall"),
        (ON | {"deterministic": True}, "enable_eplb and deterministic are both True"),
        ({"eplb_config": {"window_size": 5}}, "enable_eplb is False: set it to True"),
        (ON | {"eplb_config": {"window": 5}}, "no option 'window'; .*window_size"),
        (ON | {"eplb_config": {"step_interval": 0}}, "step_interval is 0, allowed is 1 "),
        (ON | {"eplb_config": {"communicator": "nixl"}}, "communicator='nixl' is not supported yet: .* NCCL"),
        (ON | {"eplb_config": {"policy": "random"}}, "policy is 'random', allowed is 'default'"),
        (ON | {"eplb_config": "{"}, "which is not JSON"),
    ],
)
def test_what_does_not_go_together_says_what_to_set(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BackendConfig(**options)


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*EPLBConfig.__dataclass_fields__, "x"]), inner, max_size=4)
)))  # fmt: skip
def test_any_json_is_read_or_refused(value: Any) -> None:
    for given_value in (value, json.dumps(value)):
        told = ""
        try:
            assert isinstance(read_eplb_config(given_value), EPLBConfig)
        except ConfigError as error:
            told = str(error)
        assert not told or told.startswith("eplb_config is ")
