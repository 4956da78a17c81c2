"""From options to a running engine. Each room gets only its own section of the options."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from octavo.cache.kv_cache import KVCache
from octavo.config import CacheConfig, EngineConfig
from octavo.distributed.world import check_ray
from octavo.engine.asked_grammars import AskedGrammars
from octavo.engine.core import EngineCore, OverlappedCore
from octavo.engine.grammar_gate import GrammarGate
from octavo.engine.input import InputProcessor
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.pooled import PoolingInput
from octavo.engine.sampling_defaults import sampling_defaults
from octavo.engine.start_up_card import start_up_card, warn_of_leftovers
from octavo.env import cache_dir
from octavo.errors import ConfigError
from octavo.executor.executor import Executor, executor_here
from octavo.models.architecture import Architecture
from octavo.observe.event_log import EventLog
from octavo.observe.events import EngineStarted
from octavo.observe.recorder import FlightRecorder
from octavo.observe.tracing import RequestTracer, open_tracer
from octavo.pooling_params import PooledForm, PoolingTask
from octavo.request import RequestLimits
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from octavo.text.tokenizer import open_tokenizer
from octavo.worker.task import WorkerShape, WorkerTask

if TYPE_CHECKING:
    from octavo.engine.adapter_book import AdapterBook

Clock = Callable[[], float]


def build_engine(
    config: EngineConfig, clock: Clock = time.monotonic, *, serves: bool = False, moves_blocks: bool = False
) -> LLMEngine:
    """Start the workers and connect an engine to them. serves, moves_blocks: as in a WorkerTask."""
    begin = clock()
    events = EventLog(config.observe.event_log_size, keeps_token_ids=config.observe.record_token_ids)
    tracer = _tracer(config, events, clock)
    executor = build_executor(config, serves=serves, moves_blocks=moves_blocks)
    try:
        shape = executor.shape
        config = _for_model(config, shape)
        warn_of_leftovers(shape.label, shape.leftovers)
        tokenizer = open_tokenizer(config.model, lambda: shape.tokenizer_source)
        limits, has_text = _limits(config, shape), replace(config.model, skip_tokenizer_init=False)
        sizes = limits.vocab_size, limits.eos_token_ids
        grammars = AskedGrammars.of(tokenizer, *sizes, lambda: open_tokenizer(has_text, lambda: shape.tokenizer_source))
        takes = InputProcessor if limits.pooled is None else PoolingInput
        _record_start(config, shape, events, clock)
        recorder = FlightRecorder(events, asdict(config), clock, cache_dir)
        if config.observe.record is not None:
            recorder.record(config.observe.record)
        return LLMEngine(
            core=_core(config, executor, grammars.compiler, events, clock),
            inputs=takes(tokenizer, limits, config.model.seed, grammars, steps_here=_runs_here(config)),
            tokenizer=tokenizer,
            events=events,
            clock=clock,
            tracer=tracer,
            recorder=recorder,
            default_sampling_params=sampling_defaults(config.model, shape.sampling_defaults),
            card=start_up_card(shape, measured(executor), clock() - begin),
            measure=lambda: measured(executor),
        )
    except BaseException:
        executor.close()
        raise


def _for_model(config: EngineConfig, shape: WorkerShape) -> EngineConfig:
    """The options as they are for that model: one that reads each text whole is given no parts."""
    if not shape.architecture.takes_whole_prompts:
        return config
    if threshold := config.scheduler.long_prefill_token_threshold:
        raise ConfigError(
            f"long_prefill_token_threshold is {threshold}, but {shape.label} reads each text whole: set it to 0"
        )
    return replace(config, scheduler=replace(config.scheduler, enable_chunked_prefill=False))


def build_executor(config: EngineConfig, **how: bool) -> Executor:
    """Start the workers alone. how: serves and moves_blocks of a WorkerTask."""
    task = WorkerTask.of(config, overlaps=_overlaps_on_hosts(config), **how)
    asked = config.backend.distributed_executor_backend
    if _runs_here(config):
        return executor_here(task, on_thread=task.overlaps)
    from octavo.executor.rank_executor import RankExecutor

    if asked == "ray":
        check_ray()
        from octavo.executor.ray import RayActors

        return RankExecutor(task, RayActors())
    from octavo.executor.processes import ChildProcesses

    return RankExecutor(task, ChildProcesses())


def _runs_here(config: EngineConfig) -> bool:
    """Whether the only worker is in this process."""
    backend = config.backend
    num_ranks = backend.tensor_parallel_size * backend.pipeline_parallel_size
    return backend.distributed_executor_backend is None and num_ranks == 1


def _core(
    config: EngineConfig, executor: Executor, compiler: GrammarCompiler, events: EventLog, clock: Clock
) -> EngineCore:
    """async_scheduling plans a step while another runs: by default on devices that compute asynchronously, and where
    workers have processes of their own."""
    shape, num_stages = executor.shape, _num_stages(config)
    cache = _kv_cache(config, shape, events, clock)
    scheduler = Scheduler(
        replace(config.scheduler, max_num_seqs=shape.limits.max_num_seqs),
        cache,
        max_model_len=shape.limits.max_model_len,
        max_num_batched_tokens=shape.limits.max_num_tokens,
        events=events,
        clock=clock,
        num_stages=num_stages,
        num_adapter_slots=config.lora.max_loras if config.lora.enable_lora else 0,
        num_kept_adapters=config.lora.num_kept if config.lora.enable_lora else 0,
    )
    parts, check = (scheduler, cache, executor, events, clock), config.observe.check_invariants
    gate = GrammarGate(compiler, executor.constrain)
    options: dict[str, Any] = {"check_invariants": check, "gate": gate, "adapters": _adapter_book(config, shape)}
    options["reader"] = executor
    if num_stages > 1:
        from octavo.engine.pipelined import PipelinedCore

        return PipelinedCore(*parts, num_stages=num_stages, **options)
    if not _is_overlapped(config, shape):
        return EngineCore(*parts, **options)
    always_ahead = shape.is_asynchronous or config.scheduler.async_scheduling is True
    return OverlappedCore(*parts, always_ahead=always_ahead, **options)


def _adapter_book(config: EngineConfig, shape: WorkerShape) -> AdapterBook | None:
    if not config.lora.enable_lora:
        return None
    from octavo.engine.adapter_book import AdapterBook  # engines without adapters run without its code

    return AdapterBook(config.lora, shape.adapter_targets, shape.architecture.family)


def _is_overlapped(config: EngineConfig, shape: WorkerShape) -> bool:
    is_default = config.scheduler.async_scheduling is None
    return _overlaps_on_hosts(config) or (is_default and shape.is_asynchronous)


def _overlaps_on_hosts(config: EngineConfig) -> bool:
    asked = config.scheduler.async_scheduling
    return not _runs_here(config) if asked is None else asked


def _num_stages(config: EngineConfig) -> int:
    """Steps in flight. Without async_scheduling there is one, whatever the number of stages."""
    return 1 if config.scheduler.async_scheduling is False else config.backend.pipeline_parallel_size


def _record_start(config: EngineConfig, shape: WorkerShape, events: EventLog, clock: Clock) -> None:
    layout = shape.layout
    events.start(
        EngineStarted(
            time=clock(),
            num_blocks=layout.num_blocks - 1,
            block_size=layout.block_size,
            block_bytes=layout.block_bytes,
            num_groups=len(shape.groups),
            max_model_len=shape.limits.max_model_len,
            enable_prefix_caching=_caches_prefixes(config, shape),
            cache_options=_cache_options(config.cache, shape),
            windows=tuple([group.window for group in shape.groups]),
            max_num_seqs=shape.limits.max_num_seqs,
            max_num_batched_tokens=shape.limits.max_num_tokens,
            is_overlapped=_is_overlapped(config, shape),
            num_stages=_num_stages(config),
            max_loras=config.lora.max_loras if config.lora.enable_lora else 0,
        )
    )


def _cache_options(config: CacheConfig, shape: WorkerShape) -> tuple[tuple[str, str], ...]:
    """The cache's options, named and written as in vLLM's metrics."""
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
        enable_prefix_caching=_caches_prefixes(config, shape),
        events=events,
        clock=clock,
    )


def _limits(config: EngineConfig, shape: WorkerShape) -> RequestLimits:
    architecture = shape.architecture
    return RequestLimits(
        max_model_len=shape.limits.max_model_len,
        max_num_seqs=shape.limits.max_num_seqs,
        max_logprobs=config.observe.max_logprobs,
        vocab_size=shape.limits.vocab_size,
        eos_token_ids=architecture.eos_token_ids,
        enable_prefix_caching=_caches_prefixes(config, shape),
        enable_lora=config.lora.enable_lora,
        lora_root=config.lora.lora_root,
        pooled=_pooled_form(architecture),
    )


def _pooled_form(architecture: Architecture) -> PooledForm | None:
    """None: the model generates. Each token's embedding needs a step with the whole text."""
    pooling, classes = architecture.pooling, architecture.classes
    if pooling is None:
        return None
    if classes is None:
        tasks: tuple[PoolingTask, ...] = ("embed", "token_embed") if architecture.takes_whole_prompts else ("embed",)
        size, takes_types = architecture.hidden_size, architecture.takes_types
        return PooledForm(size=size, normalizes=pooling.normalizes, tasks=tasks, takes_types=takes_types)
    return PooledForm(
        size=len(classes.labels),
        normalizes=pooling.normalizes,
        tasks=("token_classify",) if classes.of_tokens else ("classify",),
        labels=classes.labels,
        activation=classes.activation,
        takes_types=architecture.takes_types,
    )


def _caches_prefixes(config: EngineConfig, shape: WorkerShape) -> bool:
    """Where a step has all of a text, or needs its every hidden state, no part of it can come from a cache."""
    return config.cache.enable_prefix_caching and not shape.architecture.takes_whole_prompts


def measured(executor: Executor) -> dict[str, int]:
    """Bytes by component, KV blocks included, of an engine's only or first worker."""
    layout = executor.shape.layout
    found = {str(component): num_bytes for component, num_bytes in executor.measured().items()}
    return found | {"KV blocks": layout.num_blocks * layout.block_bytes}
