"""EngineArgs: an engine's options as an object, as vLLM's users pass them: made, changed, and turned into an engine."""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, make_dataclass
from typing import Any, get_type_hints

from octavo.config import EngineConfig
from octavo.engine.assemble import engine_config


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
    """Options of LLM and AsyncLLM under their names, checked when made and when the engine is.

    model and options: as LLM takes them; what is not given has its default, and can be read and set as an attribute.
    `vars(args)`, and `dataclasses.asdict(args)`, are keywords for LLM.
    """

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        engine_config(model=model, **options)
        super().__init__(model=model)
        self.__dict__.update(options)

    def create_engine_config(self) -> EngineConfig:
        """The options, sorted and checked. Raises ConfigError."""
        return engine_config(**vars(self))
