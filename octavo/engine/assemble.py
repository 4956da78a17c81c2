"""From options to a running engine: the one place where all rooms meet, each given its own section."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

from octavo.cache.groups import CacheGroup, layers_per_group, make_groups
from octavo.cache.kv_cache import KVCache
from octavo.config import BackendConfig, CacheConfig, EngineConfig, ModelConfig, ObserveConfig, SchedulerConfig
from octavo.engine import device
from octavo.engine.card import start_up_card, warn_of_leftovers
from octavo.engine.core import EngineCore
from octavo.engine.input import InputProcessor, RequestLimits
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.overlap import OverlappedCore
from octavo.errors import ConfigError
from octavo.executor.inline import InlineExecutor, LaunchingExecutor, ThreadedExecutor
from octavo.executor.interface import Executor
from octavo.kernels.cuda.backend import TritonBackend
from octavo.kernels.ops import Backend, KVDType, KVLayout, Model, StepLimits
from octavo.kernels.registry import converter, select
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.context_len import allowed_model_len
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from octavo.observe.events import EngineStarted, EventLog
from octavo.observe.tracing import RequestTracer, open_tracer
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.shown import suggestion
from octavo.text.tokenizer import Tokenizer, check_chat_template, open_tokenizer
from octavo.vllm_options import ENGINE_OPTIONS, SERVER_ONLY, why_not
from octavo.worker.memory import KVBudget, plan_kv_cache
from octavo.worker.worker import Worker

Clock = Callable[[], float]

DEFAULT_MAX_NUM_SEQS = 256
SERVER_TOKEN_BUDGET = 8192  # vLLM's for servers: every stream waits for the longest step
DEFAULT_TOKEN_BUDGET = 512  # of a CPU step: prefill runs at full speed and decodes wait well under a second

_SECTIONS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "backend": BackendConfig,
    "observe": ObserveConfig,
}

_VLLM_OPTIONS = ENGINE_OPTIONS | SERVER_ONLY

#: KV blocks take the type of dense weights; block-quantised weights get float16
_KV_DTYPE_OF_FILE: dict[str, KVDType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


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
    """Open the checkpoint, choose the backend, size the cache, and connect. serves: for users who wait for every token.
    Steps are then at most SERVER_TOKEN_BUDGET tokens where the options leave it to the device, and a device's kernels
    are compiled before the engine is there."""
    begin = clock()
    compiler = device.compiler_for_first_start(config) if serves else None
    events = EventLog(config.observe.event_log_size)
    tracer = _tracer(config, events, clock)
    with nullcontext() if compiler is None else closing(compiler):
        selection = select(config.backend)
        backend = selection.backend
        config = _with_device_defaults(config, backend, SERVER_TOKEN_BUDGET if serves else None)
        is_on_device = isinstance(backend, TritonBackend)
        checkpoint = open_checkpoint(config.model, converter(config.backend), draws_on_device=is_on_device)
        if isinstance(backend, TritonBackend):
            shape, worker = _load_on_device(config, checkpoint, backend)
            if serves:
                worker.warm_up(shape.limits, compiler)
        else:
            shape, worker = _load_on_host(config, checkpoint, backend)
    warn_of_leftovers(checkpoint)
    tokenizer = open_tokenizer(config.model, lambda: checkpoint.tokenizer_source)
    _record_start(config, shape, events, clock)
    cache = _kv_cache(config, shape, events, clock)
    scheduler = Scheduler(
        config.scheduler,
        cache,
        max_model_len=shape.limits.max_model_len,
        max_num_batched_tokens=shape.limits.max_num_tokens,
        events=events,
        clock=clock,
    )
    is_overlapped = is_on_device if config.scheduler.async_scheduling is None else config.scheduler.async_scheduling
    core = (OverlappedCore if is_overlapped else EngineCore)(
        scheduler,
        cache,
        _executor(worker, is_overlapped, is_on_device),
        events,
        clock,
        check_invariants=config.observe.check_invariants,
    )
    return LLMEngine(
        core=core,
        inputs=_inputs(config, checkpoint.architecture, shape.limits, tokenizer),
        tokenizer=tokenizer,
        events=events,
        clock=clock,
        tracer=tracer,
        default_sampling_params=SamplingParams(**checkpoint.sampling_defaults),
        card=start_up_card(
            *(checkpoint, selection.why, shape.layout, shape.limits, clock() - begin),
            device=device.label(backend, shape.layout.dtype) if isinstance(backend, TritonBackend) else None,
        ),
    )


def _executor(worker: Worker, is_overlapped: bool, is_on_device: bool) -> Executor:
    """A device runs launched steps by itself; a host's kernels need a thread to run beside the scheduler."""
    if not is_overlapped:
        return InlineExecutor(worker)
    return LaunchingExecutor(worker) if is_on_device else ThreadedExecutor(worker)


@dataclass(frozen=True, slots=True)
class _EngineShape:
    """The sizes that scheduler, cache and worker share."""

    groups: tuple[CacheGroup, ...]
    layout: KVLayout
    limits: StepLimits

    def fitted(self, budget: KVBudget) -> _EngineShape:
        """These sizes with the blocks that there is room for."""
        return replace(
            self,
            layout=replace(self.layout, num_blocks=budget.num_blocks),
            limits=replace(self.limits, max_model_len=budget.max_model_len),
        )


def _with_device_defaults(
    config: EngineConfig, backend: Backend | TritonBackend, most_tokens: int | None
) -> EngineConfig:
    """The step's sizes, where they were left to the device."""
    if isinstance(backend, TritonBackend):
        num_tokens, num_seqs = device.default_token_budget(backend), device.default_max_num_seqs(backend)
    else:
        num_tokens, num_seqs = DEFAULT_TOKEN_BUDGET, DEFAULT_MAX_NUM_SEQS
    if most_tokens is not None:
        num_tokens = min(num_tokens, most_tokens)
    sizes = config.scheduler
    return replace(
        config,
        scheduler=replace(
            sizes,
            max_num_batched_tokens=sizes.max_num_batched_tokens or num_tokens,
            max_num_seqs=sizes.max_num_seqs or num_seqs,
        ),
    )


def _load_on_host(config: EngineConfig, checkpoint: Checkpoint, backend: Backend) -> tuple[_EngineShape, Worker]:
    shape = _largest_shape(config, checkpoint, _kv_dtype(config, checkpoint))
    limits = shape.limits
    is_len_asked = config.model.max_model_len is not None
    budget = plan_kv_cache(
        *(config.cache, shape.layout, len(shape.groups), limits.max_num_seqs, limits.max_model_len, is_len_asked)
    )
    shape = shape.fitted(budget)
    model = _build_model(checkpoint, shape)
    mode = config.observe.logprobs_mode
    return shape, Worker.on_host(backend, model, shape.layout, shape.limits, len(shape.groups), mode)


def _load_on_device(
    config: EngineConfig, checkpoint: Checkpoint, backend: TritonBackend
) -> tuple[_EngineShape, Worker]:
    """Weights first: the KV blocks get what they leave."""
    dtype = device.compute_dtype(config.model.dtype, checkpoint.dtypes[0])
    shape = _largest_shape(config, checkpoint, device.kv_dtype(config.cache, dtype))
    loaded = device.load_on_device(backend, _build_model(checkpoint, shape), shape.layout, shape.limits, dtype)
    is_len_asked = config.model.max_model_len is not None
    shape = shape.fitted(
        device.plan_device_cache(config.cache, loaded, shape.layout, len(shape.groups), shape.limits, is_len_asked)
    )
    mode = config.observe.logprobs_mode
    return shape, Worker.on_device(loaded, shape.layout, shape.limits, len(shape.groups), mode)


def _largest_shape(config: EngineConfig, checkpoint: Checkpoint, kv_dtype: KVDType) -> _EngineShape:
    """The sizes before it is known how many blocks there will be."""
    architecture = checkpoint.architecture
    groups = make_groups(architecture.windows or (None,) * architecture.num_layers)
    layout = KVLayout(
        num_blocks=0,  # chosen below
        block_size=config.cache.block_size,
        layers_per_group=layers_per_group(groups),
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        dtype=kv_dtype,
    )
    model_len = allowed_model_len(architecture, config.model.max_model_len)
    sizes = config.scheduler
    assert sizes.max_num_batched_tokens is not None, "the device has chosen a token budget"
    assert sizes.max_num_seqs is not None, "the device has chosen a number of sequences"
    num_tokens = sizes.max_num_batched_tokens
    limits = StepLimits(
        max_num_tokens=num_tokens if sizes.enable_chunked_prefill else max(num_tokens, model_len),
        max_num_seqs=sizes.max_num_seqs,
        max_model_len=model_len,
        vocab_size=architecture.vocab_size,
    )
    return _EngineShape(groups, layout, limits)


def _kv_dtype(config: EngineConfig, checkpoint: Checkpoint) -> KVDType:
    """auto follows the dtype asked for the weights, then the file's."""
    if config.cache.kv_cache_dtype != "auto":
        return config.cache.kv_cache_dtype
    if config.model.dtype != "auto":
        return config.model.dtype
    return _KV_DTYPE_OF_FILE.get(checkpoint.dtype_label.split(", ")[0], "float16")


def _build_model(checkpoint: Checkpoint, shape: _EngineShape) -> Model:
    return build_model(checkpoint.architecture, checkpoint, _layer_slots(shape.groups), shape.limits.max_model_len)


def _layer_slots(groups: Sequence[CacheGroup]) -> list[tuple[int, int]]:
    """For each layer, its group and its place there."""
    slots = {layer: (g, place) for g, group in enumerate(groups) for place, layer in enumerate(group.layers)}
    return [slots[layer] for layer in range(len(slots))]


def _record_start(config: EngineConfig, shape: _EngineShape, events: EventLog, clock: Clock) -> None:
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


def _cache_options(config: CacheConfig, shape: _EngineShape) -> tuple[tuple[str, str], ...]:
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


def _kv_cache(config: EngineConfig, shape: _EngineShape, events: EventLog, clock: Clock) -> KVCache:
    return KVCache(
        num_blocks=shape.layout.num_blocks,
        block_size=shape.layout.block_size,
        groups=shape.groups,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        events=events,
        clock=clock,
    )


def _inputs(
    config: EngineConfig, architecture: Architecture, limits: StepLimits, tokenizer: Tokenizer | None
) -> InputProcessor:
    request_limits = RequestLimits(
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_logprobs=config.observe.max_logprobs,
        vocab_size=architecture.vocab_size,
        eos_token_ids=architecture.eos_token_ids,
    )
    return InputProcessor(tokenizer, request_limits, config.model.seed)
