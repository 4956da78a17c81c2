"""EPLBConfig: how ranks that divide experts balance their load; the option eplb_config, with vLLM's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from octavo.checked_fields import checked, knob
from octavo.errors import ConfigError
from octavo.shown import shown
from octavo.vllm_options import NotHere

_MOST_STEPS = 10**9
_OWN_LINK = NotHere("weights travel as the ranks' results do, by NCCL between GPUs and by gloo elsewhere")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class EPLBConfig:
    """When experts change places, and how many there are."""

    window_size: int = knob(1000, "steps whose rows are counted", at_least=1, at_most=_MOST_STEPS)
    step_interval: int = knob(
        3000, "steps from one choice of places to the next; a window that is longer is counted in whole intervals",
        at_least=1, at_most=_MOST_STEPS,
    )  # fmt: skip
    num_redundant_experts: int = knob(
        0, "copies of busy experts in each layer, beside the experts themselves", at_least=0, at_most=2**16
    )
    log_balancedness: bool = knob(False, "log how even the load of the ranks is, and not only at changes of places")
    log_balancedness_interval: int = knob(1, "steps between these lines", at_least=1, at_most=_MOST_STEPS)
    use_async: bool = knob(True, "one layer's experts move between two steps; off: all layers' at once")
    policy: Literal["default"] = knob("default", "greedy: the busiest expert goes to the rank with the least load")
    communicator: None = knob(
        None, "what carries the weights",
        not_yet=dict.fromkeys(("torch_nccl", "torch_gloo", "nixl", "pynccl"), _OWN_LINK),
    )  # fmt: skip


def read_eplb_config(given: str | Mapping[str, Any] | None) -> EPLBConfig:
    """Raises ConfigError."""
    try:
        asked = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"eplb_config is {shown(given)}, which is not JSON: {error}") from None
    if asked is None:
        return EPLBConfig()
    keys = ", ".join(field.name for field in fields(EPLBConfig))
    told = f"eplb_config is {shown(given)}, allowed is an object with some of the keys {keys}"
    if not isinstance(asked, Mapping) or any(not isinstance(key, str) for key in asked):
        raise ConfigError(told)
    try:
        return EPLBConfig(**asked)
    except ConfigError as error:
        raise ConfigError(f"{told}; {error}") from None


def refuse_eplb(is_enabled: bool, divides_experts: bool, is_deterministic: bool) -> None:
    """Raise ConfigError if other options leave nothing to balance, or forbid it."""
    if not is_enabled:
        raise ConfigError("eplb_config is given, but enable_eplb is False: set it to True, or leave eplb_config out")
    if not divides_experts:
        raise ConfigError(
            "enable_eplb is True, which balances experts between ranks that have them whole, and "
            "enable_expert_parallel is False: set it to True, with tensor_parallel_size at 2 or more, or leave "
            "enable_eplb out"
        )
    if is_deterministic:
        raise ConfigError(
            "enable_eplb and deterministic are both True, but results of an expert that has moved are added up in "
            "another order: leave one of them out"
        )
