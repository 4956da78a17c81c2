"""A model as it is asked to run: to generate, embed or classify, by the options runner, convert and pooler_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from octavo.config import ModelConfig
from octavo.errors import ConfigError
from octavo.models.architecture import Architecture
from octavo.models.pooling import Pooling, PoolingKind
from octavo.pooler_options import ACTIVATION_KEYS, KIND_KEYS, read_pooler_options
from octavo.shown import shown


def as_embedder(architecture: Architecture, pooling: Pooling) -> Architecture:
    """The same model, to embed texts. It then needs no head."""
    return replace(architecture, pooling=pooling, classes=None, tie_word_embeddings=True)


def as_asked(architecture: Architecture, config: ModelConfig, label: str) -> Architecture:
    """Raises ConfigError if the model cannot run so."""
    if config.runner == "generate":
        return _generating(architecture, config, label)
    pools = architecture.pooling is not None
    if config.convert == "classify" and architecture.classes is None:
        raise ConfigError(
            f"convert is 'classify', but {label} has no head for classes: take a checkpoint of a class such as "
            "BertForSequenceClassification, or convert='embed'"
        )
    if not pools and config.runner == "pooling" and config.convert == "none":
        raise ConfigError(
            f"runner is 'pooling' and convert 'none', but {label} is made to generate: leave convert at 'auto'"
        )
    if config.convert == "embed" or (config.runner == "pooling" and not pools):
        architecture = as_embedder(architecture, architecture.pooling or Pooling(kind="LAST"))
    return _pooled_as(architecture, config.pooler_config, label)


def _generating(architecture: Architecture, config: ModelConfig, label: str) -> Architecture:
    if config.convert in ("embed", "classify"):
        raise ConfigError(f"runner is 'generate' and convert {config.convert!r}, allowed are 'auto' and 'none'")
    if config.pooler_config is not None:
        raise ConfigError("pooler_config is given, but runner is 'generate': leave one of them out")
    if not architecture.is_causal:
        raise ConfigError(
            f"runner is 'generate', but {label} is an encoder ({architecture.family}), which embeds or classifies "
            "texts and generates none: leave runner at 'auto', or choose another model"
        )
    if architecture.classes is not None:
        raise ConfigError(
            f"runner is 'generate', but {label} has a head for classes and no LM head: leave runner at 'auto'"
        )
    return replace(architecture, pooling=None)


def _pooled_as(architecture: Architecture, given: str | Mapping[str, Any] | None, label: str) -> Architecture:
    """With the pooling that pooler_config asks for."""
    if given is None:
        return architecture
    asked, pooling = read_pooler_options(given), architecture.pooling
    if pooling is None:
        raise ConfigError(f"pooler_config is given, but {label} generates: set runner to 'pooling', too")
    kinds = {asked[key] for key in KIND_KEYS if asked.get(key) is not None}
    if len(kinds) > 1 or not kinds <= {*get_args(PoolingKind)}:
        raise ConfigError(
            f"pooler_config's pooling type is {shown(sorted(map(str, kinds)))}, allowed is one of "
            f"{', '.join(get_args(PoolingKind))}"
        )
    flags = {asked[key] for key in ACTIVATION_KEYS if asked.get(key) is not None}
    if len(flags) > 1:
        raise ConfigError(f"pooler_config is {shown(asked)}, which says both yes and no of the activation: say one")
    kind: PoolingKind = kinds.pop() if kinds else pooling.kind
    normalizes = flags.pop() if flags else pooling.normalizes
    return replace(architecture, pooling=replace(pooling, kind=kind, normalizes=normalizes))
