"""From options to a running engine: the one place where all rooms meet, each given its own section."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from octavo.cache.kv_cache import KVCache
from octavo.config import BackendConfig, CacheConfig, EngineConfig, ModelConfig, ObserveConfig, SchedulerConfig
from octavo.engine.card import start_up_card, warn_of_leftovers
from octavo.engine.core import EngineCore
from octavo.engine.input import InputProcessor
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.overlap import OverlappedCore
from octavo.errors import ConfigError
from octavo.executor.inline import InlineExecutor
from octavo.executor.interface import Executor
from octavo.observe.events import EngineStarted, EventLog
from octavo.observe.tracing import RequestTracer, open_tracer
from octavo.request import RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.shown import suggestion
from octavo.text.tokenizer import Tokenizer, check_chat_template, open_tokenizer
from octavo.vllm_options import ENGINE_OPTIONS, SERVER_ONLY, why_not
from octavo.worker.task import WorkerShape, WorkerTask

Clock = Callable[[], float]

_SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "backend": BackendConfig,
    "observe": ObserveConfig,
}

_VLLM_OPTIONS = ENGINE_OPTIONS | SERVER_ONLY


def engine_config(**options: Any) -> EngineConfig:
    """Sort options into sections by field name. Raises ConfigError for a name no section has, unless it is one of
    vLLM's and asks for nothing; and TokenizerError for a chat template that is none, before a model loads."""
    sections = {}
    for section_name, section in _SECTIONS.items():
        names = {field.name for field in fields(section)} & set(options)
        sections[section_name] = section(**{name: options.pop(name) for name in names})
    if (refusal := why_not(_VLLM_OPTIONS, options)) is not None:
        raise ConfigError(refusal)
    for unknown in options.keys() - _VLLM_OPTIONS.keys():
        known = [field.name for section in _SECTIONS.values() for field in fields(section)]
        raise ConfigError(f"there is no engine option {unknown!r}; {suggestion(unknown, known)}")
    config = EngineConfig(**sections)
    if config.model.chat_template is not None:
        check_chat_template(config.model.chat_template)
    return config


def build_engine(config: EngineConfig, clock: Clock = time.monotonic, *, serves: bool = False) -> LLMEngine:
    """Have the workers made, and connect an engine to them. serves: as in a WorkerTask."""
    begin = clock()
    events = EventLog(config.observe.event_log_size)
    tracer = _tracer(config, events, clock)
    executor = _executor(config, serves)
    try:
        shape = executor.shape
        warn_of_leftovers(shape.label, shape.leftovers)
        tokenizer = open_tokenizer(config.model, lambda: shape.tokenizer_source)
        _record_start(config, shape, events, clock)
        return LLMEngine(
            core=_core(config, executor, events, clock),
            inputs=_inputs(config, shape, tokenizer),
            tokenizer=tokenizer,
            events=events,
            clock=clock,
            tracer=tracer,
            default_sampling_params=SamplingParams(**shape.sampling_defaults),
            card=start_up_card(shape, clock() - begin),
        )
    except BaseException:
        executor.close()
        raise


def _executor(config: EngineConfig, serves: bool) -> Executor:
    task = WorkerTask.of(config, serves=serves)
    if config.backend.distributed_executor_backend is None:
        return InlineExecutor.of(task)
    from octavo.executor.processes import ProcessExecutor

    return ProcessExecutor(task)


def _core(config: EngineConfig, executor: Executor, events: EventLog, clock: Clock) -> EngineCore:
    """The next step is planned while one runs: if the options do not say, on a device that computes by itself."""
    shape = executor.shape
    cache = _kv_cache(config, shape, events, clock)
    scheduler = Scheduler(
        replace(config.scheduler, max_num_seqs=shape.limits.max_num_seqs),
        cache,
        max_model_len=shape.limits.max_model_len,
        max_num_batched_tokens=shape.limits.max_num_tokens,
        events=events,
        clock=clock,
    )
    asked = config.scheduler.async_scheduling
    kind = OverlappedCore if (shape.is_asynchronous if asked is None else asked) else EngineCore
    return kind(scheduler, cache, executor, events, clock, check_invariants=config.observe.check_invariants)


def _record_start(config: EngineConfig, shape: WorkerShape, events: EventLog, clock: Clock) -> None:
    layout = shape.layout
    events.write(
        EngineStarted(
            time=clock(),
            num_blocks=layout.num_blocks - 1,
            block_size=layout.block_size,
            block_bytes=layout.block_bytes,
            num_groups=len(shape.groups),
            max_model_len=shape.limits.max_model_len,
            enable_prefix_caching=config.cache.enable_prefix_caching,
            cache_options=_cache_options(config.cache, shape),
        )
    )


def _cache_options(config: CacheConfig, shape: WorkerShape) -> tuple[tuple[str, str], ...]:
    """As vLLM's metrics name and write them."""
    options = {
        "cache_dtype": shape.layout.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "num_gpu_blocks_override": config.num_gpu_blocks_override,
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
        "kv_cache_size_tokens": (shape.layout.num_blocks - 1) * shape.layout.block_size // len(shape.groups),
        "sliding_window": min((group.window for group in shape.groups if group.window is not None), default=None),
        "num_cpu_blocks": None,
        "is_attention_free": False,
    }
    return tuple((name, str(value)) for name, value in options.items())


def _tracer(config: EngineConfig, events: EventLog, clock: Clock) -> RequestTracer | None:
    endpoint = config.observe.otlp_traces_endpoint
    return None if endpoint is None else open_tracer(endpoint, events, model_name=config.model.model, clock=clock)


def _kv_cache(config: EngineConfig, shape: WorkerShape, events: EventLog, clock: Clock) -> KVCache:
    return KVCache(
        num_blocks=shape.layout.num_blocks,
        block_size=shape.layout.block_size,
        groups=shape.groups,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        events=events,
        clock=clock,
    )


def _inputs(config: EngineConfig, shape: WorkerShape, tokenizer: Tokenizer | None) -> InputProcessor:
    request_limits = RequestLimits(
        max_model_len=shape.limits.max_model_len,
        max_num_seqs=shape.limits.max_num_seqs,
        max_logprobs=config.observe.max_logprobs,
        vocab_size=shape.limits.vocab_size,
        eos_token_ids=shape.architecture.eos_token_ids,
    )
    return InputProcessor(tokenizer, request_limits, config.model.seed)
