"""The scenarios that `octavo simulate` runs, built from its flags: one, or every combination of values to compare."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from octavo.cli.flags import add_flags, add_section_flags, number, section_options, whole_number
from octavo.config import BackendConfig, CacheConfig, ModelConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.shown import shown, suggestion

if TYPE_CHECKING:
    from octavo.simulator.generate import TraceRecipe
    from octavo.simulator.scenario import Scenario

MOST_SCENARIOS = 256
DATASETS = ("sharegpt", "alpaca", "random")
_OF_ENGINES = ("data_parallel_size", "data_parallel_routing")
_OF_A_DEVICE = frozenset({"gpu_memory_utilization", "kv_cache_dtype", "calculate_kv_scales"})
_RECIPE = {
    "num-prompts": ("N", None, "requests (1000)"),
    "request-rate": ("X", None, "requests per second; inf: all at once (inf)"),
    "burstiness": ("X", None, "1: a Poisson process; below 1: bursts; above 1: more even (1)"),
    "burst-size": ("N", None, "so many arrive at the same moment (1)"),
    "random-input-len": ("N", None, "prompt tokens, for random (1024)"),
    "random-output-len": ("N", None, "new tokens, for random (128)"),
    "random-range-ratio": ("X", None, "lengths are from (1 - X) to (1 + X) times the mean, for random (0)"),
    "num-prefixes": ("N", None, "prompts begin with one of so many texts of --prefix-len tokens (1)"),
    "prefix-len": ("N", None, "tokens of each of these texts (0)"),
    "turns": ("N", None, "requests of a conversation; each begins with all of it so far (1)"),
    "think-time": ("S", None, "mean seconds between an answer and the next turn (10)"),
    "n": ("N", None, "sequences sampled from each prompt (1)"),
    "num-priorities": ("N", None, "each request has one of the priorities 0 to N - 1 (1)"),
    "max-tokens": ("N", None, "the limit that the engine knows, if answers stop before it; default: their lengths"),
    "seed": ("N", None, "draws the trace (0)"),
}
_DRAWS = tuple(name.replace("-", "_") for name in _RECIPE)


@dataclass(frozen=True, slots=True)
class Asked:
    """names: what is compared; values: of each scenario, in the order of the names."""

    names: list[str]
    values: list[tuple[str, ...]]
    scenarios: list[Scenario]


def add_scenario_flags(parser: argparse.ArgumentParser) -> None:
    costs = "a table that `octavo bench cost` wrote, or numbers: step_ms=6,token_us=20,context_ns=40 (needed)"
    parser.add_argument("--cost", metavar="FILE|NAME=X,...", help=costs)
    compare = "run with each of these values of another flag; given several times, with all combinations"
    parser.add_argument("--compare", action="append", default=[], metavar="NAME=VALUE,...", help=compare)
    requests = parser.add_argument_group("requests")
    requests.add_argument("--trace", metavar="FILE", help="JSON lines of arrivals and lengths, in place of the rest")
    kinds = "lengths as ShareGPT's or Alpaca's, or around one of your own (sharegpt)"
    requests.add_argument("--dataset-name", choices=DATASETS, help=kinds)
    add_flags(requests, _RECIPE)
    engine = parser.add_argument_group("engine", "default: as the engine was that the cost table measured")
    add_section_flags(engine, ModelConfig, lambda name: name == "max_model_len")
    add_section_flags(engine, BackendConfig, lambda name: name in _OF_ENGINES)
    for section in (CacheConfig, SchedulerConfig):
        add_section_flags(engine, section, lambda name: name not in _OF_A_DEVICE)


def asked_scenarios(args: argparse.Namespace) -> Asked:
    axes = [_axis(text) for text in args.compare]
    names = [name for name, _ in axes]
    num_scenarios = 1
    for name, values in axes:
        num_scenarios *= len(values)
        if names.count(name) > 1 or num_scenarios > MOST_SCENARIOS:
            raise ConfigError(
                f"--compare {name} is one too many: allowed are different names, and {MOST_SCENARIOS} scenarios in all"
            )
    combinations = list(itertools.product(*(values for _, values in axes)))
    scenarios = [_scenario(args, dict(zip(names, values, strict=True))) for values in combinations]
    return Asked(names, combinations, scenarios)


def _axis(text: str) -> tuple[str, list[str]]:
    """block_size=16,32 -> the name and the values."""
    name, equals, values = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    options = [field.name for section in (CacheConfig, SchedulerConfig) for field in fields(section)]
    known = [one for one in options if one not in _OF_A_DEVICE]
    known += [*_DRAWS, *_OF_ENGINES, "max_model_len", "cost", "trace"]
    if not equals or name not in known:
        raise ConfigError(f"--compare {shown(text)} is not NAME=VALUE,VALUE of a flag; {suggestion(name, known)}")
    return name, values.split(",")


def _scenario(args: argparse.Namespace, changed: dict[str, str]) -> Scenario:
    """The flags, with a combination's values in place of theirs."""
    from octavo.simulator.scenario import Scenario

    given = argparse.Namespace(**{**vars(args), **{name: _value(name, text) for name, text in changed.items()}})
    engines = BackendConfig(**section_options(given, BackendConfig))
    return Scenario(
        cost=given.cost,
        trace=_trace(given),
        cache=CacheConfig(**section_options(given, CacheConfig)),
        scheduler=SchedulerConfig(**section_options(given, SchedulerConfig)),
        max_model_len=ModelConfig(**section_options(given, ModelConfig)).max_model_len,
        num_engines=engines.data_parallel_size,
        routing=engines.data_parallel_routing,
    )


def _value(name: str, text: str) -> Any:
    """As the parser would have it; what an engine's option means is its section's matter."""
    if name not in _DRAWS:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return (whole_number if _RECIPE[name.replace("_", "-")][0] == "N" else number)(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--compare {name}: {error}") from None


def _trace(given: argparse.Namespace) -> str | TraceRecipe:
    from octavo.simulator.generate import TraceRecipe

    drawn = {name: value for name in _DRAWS if (value := getattr(given, name)) is not None}
    if given.dataset_name is not None:
        drawn["dataset"] = given.dataset_name
    if given.trace is not None:
        for name in drawn:
            flag = "--dataset-name" if name == "dataset" else "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} draws a trace, and --trace {given.trace} is one: drop one of the two")
        return str(given.trace)
    for name in drawn:
        if name.startswith("random_") and given.dataset_name != "random":
            raise ConfigError(f"--{name.replace('_', '-')} goes with --dataset-name random")
    return TraceRecipe(**drawn)
