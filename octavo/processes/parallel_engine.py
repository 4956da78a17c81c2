"""From options to an LLMEngine over several engines in child processes: `build_engine` for data_parallel_size > 1."""

from __future__ import annotations

import time
from functools import partial, reduce

from octavo.config import EngineConfig
from octavo.engine.input import InputProcessor
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.pooled import PoolingInput
from octavo.models.located import tokenizer_source
from octavo.observe.event_log import EventLog
from octavo.processes.engine_fleet import with_engines
from octavo.processes.offline_engines import OfflineEngines
from octavo.processes.parallel_core import ParallelCore
from octavo.request import least_limits
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import open_tokenizer


def build_parallel_engine(config: EngineConfig) -> LLMEngine:
    """Start the engines. Raises the error of one that cannot start."""
    tokenizer = open_tokenizer(config.model, partial(tokenizer_source, config.model))
    engines = OfflineEngines(config)
    first, limits = engines.welcomes[0], [welcome.limits for welcome in engines.welcomes]
    takes = InputProcessor if limits[0].pooled is None else PoolingInput
    core = ParallelCore(engines, config.backend.data_parallel_routing)
    return LLMEngine(
        core=core,
        inputs=takes(tokenizer, reduce(least_limits, limits), config.model.seed),
        tokenizer=tokenizer,
        events=EventLog(0),  # each engine has its own
        clock=time.monotonic,
        default_sampling_params=SamplingParams(**first.default_sampling_params),
        card=with_engines(first.card, len(limits)),
        recorder=None,
        measure=core.measure,
        records=core,
    )
