"""Every knob, on one page. Each component receives its own section, never the whole.

Flags are made from these fields: `max_num_seqs` is `--max-num-seqs`. A field's help is the comment of its
metadata; a field exists only if something reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import ConfigError

DTypeOption = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16"]
SchedulingPolicy = Literal["fcfs", "priority"]
BackendOption = Literal["auto", "triton", "cpu", "reference"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
AttentionBackendOption = Literal["triton", "flash_attn_4"]


def knob(default: Any, why: str) -> Any:
    """A field with its default and its one-line explanation, which is also its --help."""
    return field(default=default, metadata={"help": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights, read how."""

    model: str = knob("smollm2", "a Hugging Face folder or hub id, a .gguf file, or a packaged model's name")
    tokenizer: str | None = knob(None, "a folder or hub id to take the tokenizer from; default: the model's own")
    skip_tokenizer_init: bool = knob(False, "load no tokenizer; prompts must be token ids and outputs have no text")
    chat_template: str | None = knob(
        None, "a Jinja chat template, as text or as a file's path; default: the model's own"
    )
    revision: str | None = knob(None, "branch, tag or commit of a hub model")
    dtype: DTypeOption = knob(
        "auto", "auto computes on the weights as the file stores them, on a GPU in 16 bits; others convert at load"
    )
    load_format: LoadFormat = knob("auto", "auto goes by what is there; dummy makes random weights from config.json")
    max_model_len: int | None = knob(None, "most tokens of prompt and output together; default: the model's own limit")
    seed: int = knob(0, "seeds dummy weights and the random numbers of requests that bring no seed")

    def __post_init__(self) -> None:
        _at_least("max_model_len", self.max_model_len, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV block pool."""

    block_size: int = knob(16, "token slots of a block")
    kv_cache_memory_bytes: int | None = knob(
        None,
        "bytes for KV blocks; default: a quarter of free memory, 4 GiB at most; on a GPU see gpu_memory_utilization",
    )
    gpu_memory_utilization: float = knob(
        0.92, "share of the GPU's memory, from 0 to 1, for weights, activations and KV blocks together"
    )
    num_gpu_blocks_override: int | None = knob(
        None, "exactly so many blocks, whatever the memory; for tests and studies"
    )
    kv_cache_dtype: KVCacheDType = knob("auto", "element type of KV blocks; auto follows the weights")
    enable_prefix_caching: bool = knob(True, "keep full blocks of finished sequences and find them again by content")

    def __post_init__(self) -> None:
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ConfigError(f"block_size is {self.block_size}, allowed are 8, 16, 32, 64 and 128")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, allowed is more than 0, and 1 at most"
            )
        _at_least("kv_cache_memory_bytes", self.kv_cache_memory_bytes, 1)
        _at_least("num_gpu_blocks_override", self.num_gpu_blocks_override, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs in a step."""

    max_num_batched_tokens: int | None = knob(
        None, "the token budget of a step; default: 512 on a CPU, 8192 on a GPU, from 70 GiB on 16384 but for servers"
    )
    max_num_seqs: int | None = knob(
        None, "most sequences running at once; default: 256, or 1024 on a GPU of 70 GiB or more"
    )
    enable_chunked_prefill: bool = knob(True, "cut prompts to fit the budget; off: a prompt is computed in one step")
    long_prefill_token_threshold: int = knob(0, "most prompt tokens one sequence gets in a step; 0: no such limit")
    scheduling_policy: SchedulingPolicy = knob(
        "fcfs", "fcfs: first come; priority: lowest number first, then first come"
    )
    schedule_conservativeness: float = knob(
        1.0,
        "free blocks kept for running sequences to grow into before another starts: this times what they are expected "
        "to want; 0: keep only what started prompts still need, and preempt when blocks run out",
    )
    async_scheduling: bool | None = knob(None, "plan the next step while this one runs; default: on a GPU")
    max_bypasses: int = knob(32, "how many later requests may start before one that does not fit; then it is next")

    def __post_init__(self) -> None:
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        _at_least("max_bypasses", self.max_bypasses, 0)
        if not 0 <= self.schedule_conservativeness < math.inf:
            raise ConfigError(
                f"schedule_conservativeness is {self.schedule_conservativeness}, allowed is 0 or more, 1 being what is "
                "expected"
            )
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise ConfigError(f"scheduling_policy is {self.scheduling_policy!r}, allowed are 'fcfs' and 'priority'")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Which kernels compute."""

    backend: BackendOption = knob("auto", "auto takes the fastest that works here; reference is the executable spec")
    attention_backend: AttentionBackendOption = knob(
        "triton",
        "a GPU's attention for chunks of 2048 tokens and more; flash_attn_4 needs its package, Hopper or Blackwell",
    )
    num_threads: int | None = knob(None, "threads of the cpu backend; default: the cores this process may use")

    def __post_init__(self) -> None:
        if self.attention_backend not in ("triton", "flash_attn_4"):
            raise ConfigError(
                f"attention_backend is {self.attention_backend!r}, allowed are 'triton' and 'flash_attn_4'"
            )
        _at_least("num_threads", self.num_threads, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveConfig:
    """What is written down."""

    event_log_size: int = knob(65536, "events kept in memory, the oldest dropped first; 0 keeps none")
    max_logprobs: int = knob(20, "most alternatives a request may ask for; -1 allows the whole vocabulary")
    logprobs_mode: LogprobsMode = knob(
        "raw_logprobs", "what logprobs are: of the model's own logits; no other is supported yet"
    )
    otlp_traces_endpoint: str | None = knob(
        None, "URL that traces of requests are sent to, as OTLP over HTTP; needs the extra otel; default: no traces"
    )
    check_invariants: bool = knob(False, "prove the cache's books after every step; slow, for tests")

    def __post_init__(self) -> None:
        if self.logprobs_mode != "raw_logprobs":
            raise ConfigError(f"logprobs_mode is {self.logprobs_mode!r}, not supported yet: allowed is 'raw_logprobs'")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Whom a server's engine lets wait."""

    max_num_queued_reqs: int | None = knob(
        None, "most requests waiting for a seat or blocks; more are turned away with 503; default: no limit"
    )
    queue_timeout: float | None = knob(
        None, "most seconds a request waits before its first step; then it is turned away with 503; default: no limit"
    )

    def __post_init__(self) -> None:
        _at_least("max_num_queued_reqs", self.max_num_queued_reqs, 0)
        _above_zero("queue_timeout", self.queue_timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens, in how many processes, and how it stops."""

    host: str | None = knob(None, "address to listen on; default: every IPv4 interface (127.0.0.1: this machine only)")
    port: int = knob(8000, "port to listen on; 0: any that is free")
    uds: str | None = knob(None, "path of a Unix socket to listen on, in place of host and port")
    api_server_count: int = knob(
        1, "front-end processes: they read and write HTTP, text and tokens; one engine serves all"
    )
    ssl_keyfile: str | None = knob(None, "private key; with ssl_certfile: serve https")
    ssl_certfile: str | None = knob(None, "certificate chain; with ssl_keyfile: serve https")
    ssl_ca_certs: str | None = knob(
        None, "authorities whose client certificates are accepted; then every client needs one"
    )
    shutdown_timeout: int = knob(
        0, "seconds that running requests may go on after SIGTERM or Ctrl-C; 0: end them at once"
    )
    engine_hang_timeout: float = knob(
        300.0,
        "seconds without a sign of life after which the engine is killed and started again; 0: never. Above any honest "
        "step: a long prompt's may take minutes on a few cores. First steps, which compile kernels, have 600 at least",
    )
    enable_log_requests: bool = knob(False, "a line for every request: its id, its size, how it is sampled")
    disable_log_stats: bool = knob(False, "no line every ten seconds on what the engine did")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, allowed is 0 to 65535")
        if self.uds is not None and self.host is not None:
            raise ConfigError(f"host is {self.host!r} and uds is {self.uds!r}, allowed is one of them")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("https needs both ssl_keyfile and ssl_certfile, got one of them")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_ca_certs is of no use without ssl_keyfile and ssl_certfile: give them, or drop it")
        _at_least("api_server_count", self.api_server_count, 1)
        _at_least("shutdown_timeout", self.shutdown_timeout, 0)
        if not (self.engine_hang_timeout == 0 or 1 <= self.engine_hang_timeout < math.inf):
            raise ConfigError(
                f"engine_hang_timeout is {self.engine_hang_timeout}, allowed are 1 or more seconds, and 0 for never"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All sections together; only the engine's builder sees it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{name} is {value}, allowed is {low} or more")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ConfigError(f"{name} is {value}, allowed is more than 0")
