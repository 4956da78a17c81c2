"""adapter_config.json, as PEFT writes it: which matrices an adapter changes, and with which rank and scale.

A setting that would change the numbers in another way than `W + scale * B A` is refused by its name. The file is not
trusted: PEFT's patterns are regular expressions, which a file could make endless; here a pattern is a module's name or
the end of one, and where `target_modules` is an expression the tensors of the file alone say what is adapted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TypeVar

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config_file import ConfigFile, read_json
from octavo.shown import shown

Value = TypeVar("Value")

CONFIG_NAME = "adapter_config.json"
LARGEST_RANK = 256
_MOST_NAMES = 10_000
_LARGEST_ALPHA = 1e6
#: settings that must be missing, null, false or empty
_REFUSED = (
    *("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config"),
    *("use_qalora", "alora_invocation_tokens", "target_parameters", "arrow_config", "use_bdlora", "monteclora_config"),
)
#: ways of beginning that change the base model's own weights
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LITERAL = re.compile(r"\^?(?P<name>(?:[\w-]|\\?\.)+)\$?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """targets: ends of the names of adapted modules; None: the tensors say it. layers: of those, the only layers with
    adapters; None: all. ranks, alphas: by the end of a module's name, where they are not `rank` and `alpha`."""

    path: Path
    rank: int
    alpha: float
    uses_rslora: bool
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...] | None
    layers: frozenset[int] | None
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    base_model: str | None

    def rank_of(self, module: str) -> int:
        return _of(module, self.ranks, self.rank)

    def scale_of(self, module: str) -> float:
        """What its B A is multiplied by."""
        rank, alpha = self.rank_of(module), _of(module, self.alphas, self.alpha)
        return alpha / sqrt(rank) if self.uses_rslora else alpha / rank

    def adapts(self, module: str) -> bool | None:
        """Whether a module must have matrices; None: the tensors say it."""
        if self.targets is None or self.excluded is None:
            return None
        if any(_ends(module, name) for name in self.excluded):
            return False
        if not any(_ends(module, name) for name in self.targets):
            return False
        return self.layers is None or _layer_of(module) in self.layers


def read_adapter_config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG_NAME
    config = ConfigFile(path, read_json(path))
    kind = config.text("peft_type", "LORA")
    if kind.upper() != "LORA":
        raise config.wrong("peft_type", "'LORA'", UnsupportedModelError)
    _refuse_others(config)
    rank = config.size("r", largest=LARGEST_RANK)
    return AdapterConfig(
        path=path,
        rank=rank,
        alpha=config.number("lora_alpha", 8, least=-_LARGEST_ALPHA, most=_LARGEST_ALPHA),
        uses_rslora=config.flag("use_rslora", False),
        targets=_targets(config),
        excluded=_excluded(config),
        layers=_layers(config),
        ranks={name: patterns.size(key, largest=LARGEST_RANK) for patterns, key, name in _patterns(config, "rank")},
        alphas={
            name: patterns.number(key, least=-_LARGEST_ALPHA, most=_LARGEST_ALPHA)
            for patterns, key, name in _patterns(config, "alpha")
        },
        base_model=config.optional_text("base_model_name_or_path"),
    )


def _refuse_others(config: ConfigFile) -> None:
    for key in _REFUSED:
        if config.values.get(key):
            raise config.wrong(key, "none: Octavo adds scale * B A to a matrix and nothing else", UnsupportedModelError)
    if config.text("bias", "none") != "none":
        raise config.wrong("bias", "'none': biases of an adapter are not applied", UnsupportedModelError)
    begin = config.values.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(_CHANGES_BASE):
        allowed = "a way that leaves the base model as it is; PEFT's save_pretrained converts others with "
        raise config.wrong(
            "init_lora_weights", f"{allowed}path_initial_model_for_weight_conversion", UnsupportedModelError
        )


def _targets(config: ConfigFile) -> tuple[str, ...] | None:
    value = config.values.get("target_modules")
    return None if value is None or isinstance(value, str) else _names(config, "target_modules", value)


def _excluded(config: ConfigFile) -> tuple[str, ...] | None:
    """None: an expression, so the tensors say what is left."""
    value = config.values.get("exclude_modules")
    if isinstance(value, str):
        return None
    return () if value is None else _names(config, "exclude_modules", value)


def _names(config: ConfigFile, key: str, value: object) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= _MOST_NAMES and all(isinstance(one, str) for one in value)
    if not is_list:
        raise config.wrong(key, f"a text, or a list of up to {_MOST_NAMES} texts")
    return tuple(value)  # type: ignore[arg-type]  # a list of texts


def _layers(config: ConfigFile) -> frozenset[int] | None:
    value = config.values.get("layers_to_transform")
    if value is None or value == []:
        return None
    found: Sequence[object] = value if isinstance(value, list) else [value]
    if len(found) > _MOST_NAMES or any(type(one) is not int or one < 0 for one in found):
        raise config.wrong("layers_to_transform", "a layer's number, or a list of them")
    return frozenset(one for one in found if isinstance(one, int))


def _patterns(config: ConfigFile, what: str) -> list[tuple[ConfigFile, str, str]]:
    """The object under rank_pattern or alpha_pattern, and each of its keys, as it is and as the end of a name."""
    patterns = config.inside(f"{what}_pattern")
    if len(patterns.values) > _MOST_NAMES:
        raise ModelLoadError(f"{config.path}: {what}_pattern has more than {_MOST_NAMES} keys; write fewer")
    found = []
    for key in patterns.values:
        match = _LITERAL.fullmatch(key)
        if match is None:
            raise UnsupportedModelError(
                f"{config.path}: {what}_pattern has the key {shown(key)}; allowed are names of modules and their ends, "
                "not other regular expressions: write a key for each module"
            )
        found.append((patterns, key, match["name"].replace("\\.", ".")))
    return found


def _of(module: str, values: Mapping[str, Value], default: Value) -> Value:
    return next((value for name, value in values.items() if _ends(module, name)), default)


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _layer_of(module: str) -> int | None:
    """The first whole number among the parts of its name."""
    return next((int(part) for part in module.split(".") if part.isascii() and part.isdigit()), None)
