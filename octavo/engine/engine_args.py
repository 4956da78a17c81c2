"""EngineArgs: an engine's options as one object, as in vLLM."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, make_dataclass
from typing import Any, get_type_hints

from octavo.config import EngineConfig
from octavo.engine.options import engine_config


def _as_field(option: Field[Any]) -> Any:
    if option.default_factory is not MISSING:
        return field(default_factory=option.default_factory)
    return field(default=option.default)


_Options: Any = make_dataclass(
    "_Options",
    [
        (option.name, Any, _as_field(option))
        for section in get_type_hints(EngineConfig).values()
        for option in fields(section)
    ],
)


class EngineArgs(_Options):  # type: ignore[misc]
    """The options of LLM and AsyncLLM by name, checked when this object is made and again when an engine is.

    model, options: as for LLM; the others have their defaults. Each is an attribute to read and set. `vars(args)` and
    `dataclasses.asdict(args)` are keywords for LLM.
    """

    def __init__(self, /, model: str = "smollm2", **options: Any) -> None:
        engine_config(model=model, **options)
        super().__init__(model=model)
        self.__dict__.update(options)

    def create_engine_config(self) -> EngineConfig:
        """The options, sorted and checked. Raises ConfigError."""
        return engine_config(**vars(self))
