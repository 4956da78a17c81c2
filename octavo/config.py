"""All configuration options. Each component receives its own section, never the whole.

Each field is also a flag: `max_num_seqs` is `--max-num-seqs`. `checked_fields.py` checks types and ranges.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from octavo.checked_fields import checked, knob
from octavo.errors import ConfigError
from octavo.vllm_options import NotHere

DTypeOption = Literal["auto", "float32", "bfloat16", "float16"]
ContentFormat = Literal["auto", "string", "openai"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16"]
SchedulingPolicy = Literal["fcfs", "priority"]
BackendOption = Literal["auto", "triton", "cpu", "reference"]
ActivationDType = Literal["int8", "int16"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
ExecutorBackend = Literal["mp"]
AttentionBackendOption = Literal["auto", "cuda", "hopper", "triton", "flash_attn_4"]

_MAX_COUNT = 2**31 - 1  # kernels count in int32

#: torch's short names, as vLLM takes them
_SHORT_DTYPES = {"half": "float16", "float": "float32"}
_NO_KV_QUANTISATION = NotHere("KV blocks hold 'float32', 'bfloat16' or 'float16', and 'auto' follows the weights")
_MAPPED = NotHere("'auto' maps .safetensors and .gguf files, and there are no other loaders")
_ONE_MACHINE = NotHere("workers are processes on this machine: 'mp'")
_FEW_BACKENDS = NotHere("a GPU's attention is 'triton', or 'flash_attn_4' for long chunks where its package is")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model's weights and how to load them."""

    model: str = knob("smollm2", "a Hugging Face folder or hub id, a .gguf file, or a packaged model's name")
    tokenizer: str | None = knob(None, "a folder or hub id to take the tokenizer from; default: the model's own")
    skip_tokenizer_init: bool = knob(False, "load no tokenizer; prompts must be token ids and outputs have no text")
    chat_template: str | None = knob(None, "a Jinja chat template or its file's path; default: the model's own")
    chat_template_content_format: ContentFormat = knob(
        "auto",
        "how the template gets a message's content: as one text (string) or as a list of parts (openai); auto: the "
        "way that the template reads it",
    )
    revision: str | None = knob(None, "branch, tag or commit of a hub model")
    dtype: DTypeOption = knob(
        "auto",
        "auto computes with the weights as the file stores them, on a GPU in 16 bits; others convert at load",
        spellings=_SHORT_DTYPES,
    )
    load_format: LoadFormat = knob(
        "auto",
        "auto detects the format; dummy creates random weights from config.json",
        not_yet=dict.fromkeys(
            (
                *("pt", "npcache", "bitsandbytes", "mistral", "tensorizer", "sharded_state", "runai_streamer"),
                *("fastsafetensors", "instanttensor", "ipc_cache", "modelexpress"),
            ),
            _MAPPED,
        ),
    )
    max_model_len: int | None = knob(
        None,
        "most tokens of prompt and output together; default (also auto, -1): the model's own limit, or what fits",
        at_least=1,
        at_most=_MAX_COUNT,
        spellings={"auto": None, -1: None, "-1": None},
    )
    seed: int = knob(0, "seed of dummy weights and of requests without their own seed")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV block pool."""

    block_size: int = knob(16, "token slots per block")
    kv_cache_memory_bytes: int | None = knob(
        None,
        "bytes for KV blocks; default: a quarter of free memory, 4 GiB at most; on a GPU see gpu_memory_utilization",
        at_least=1,
    )
    gpu_memory_utilization: float = knob(
        0.92, "share of the GPU's memory, from 0 to 1, for weights, activations and KV blocks together"
    )
    num_gpu_blocks_override: int | None = knob(
        None, "the exact number of blocks, whatever the memory; for tests and studies", at_least=2, at_most=_MAX_COUNT
    )
    kv_cache_dtype: KVCacheDType = knob(
        "auto",
        "element type of KV blocks; auto follows the weights",
        spellings=_SHORT_DTYPES,
        not_yet=dict.fromkeys(
            (
                *("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "fp8_per_token_head", "nvfp4"),
                *("int8", "int8_per_token_head", "int4_per_token_head"),
            ),
            _NO_KV_QUANTISATION,
        ),
    )
    enable_prefix_caching: bool = knob(True, "keep full blocks of finished sequences and reuse them for equal prefixes")

    def __post_init__(self) -> None:
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ConfigError(f"block_size is {self.block_size}, allowed are 8, 16, 32, 64 and 128")
        if not 0 < (share := self.gpu_memory_utilization) <= 1:
            raise ConfigError(f"gpu_memory_utilization is {share}, allowed is more than 0, and 1 at most")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Which sequences run in a step."""

    max_num_batched_tokens: int | None = knob(
        None,
        "the token budget of a step; default: 512 on a CPU, 8192 on a GPU, 16384 offline on a GPU of 70 GiB or more",
        at_least=1,
        at_most=_MAX_COUNT,
    )
    max_num_seqs: int | None = knob(
        None, "most running sequences; default: 256, or 1024 on a GPU of 70 GiB or more", at_least=1, at_most=2**20
    )
    enable_chunked_prefill: bool = knob(
        True, "cut prompts to fit the budget; off: a prompt is computed in one step, which may take all of the context"
    )
    long_prefill_token_threshold: int = knob(0, "most prompt tokens per sequence in a step; 0: no limit", at_least=0)
    scheduling_policy: SchedulingPolicy = knob(
        "fcfs", "fcfs: first come; priority: lowest number first, at the cost of running ones, then first come"
    )
    schedule_conservativeness: float = knob(
        1.0,
        "free blocks kept for running sequences to grow into before another starts: this times their expected growth; "
        "0: keep only what started prompts still need, and preempt when blocks run out",
    )
    async_scheduling: bool | None = knob(None, "schedule the next step while this one runs; default: on a GPU")
    max_bypasses: int = knob(32, "how many later requests may start before one that does not fit yet", at_least=0)

    def __post_init__(self) -> None:
        if not 0 <= (factor := self.schedule_conservativeness) < math.inf:
            raise ConfigError(f"schedule_conservativeness is {factor}, allowed is 0 or more, 1 for what is expected")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Which kernels compute, and where."""

    backend: BackendOption = knob("auto", "auto takes the fastest that works here; reference is the executable spec")
    attention_backend: AttentionBackendOption = knob(
        "auto",
        "a GPU's attention; auto takes the fastest of Octavo's own; flash_attn_4, for chunks of 2048 tokens and more, "
        "needs its package, Hopper or Blackwell",
        spellings={"TRITON_ATTN": "triton"},
        not_yet=dict.fromkeys(("FLASH_ATTN", "FLASHINFER", "FLEX_ATTENTION", "CPU_ATTN", "XFORMERS"), _FEW_BACKENDS),
    )
    device: str = knob(
        "auto", "which GPU of those that CUDA_VISIBLE_DEVICES shows; cuda:1: the second; auto: the first"
    )
    data_parallel_size: int = knob(
        1,
        "engines with the same model, which share the requests; limits such as max_num_seqs are each one's, and on a "
        "CPU each has its part of the cores",
        at_least=1,
        at_most=1024,
    )
    distributed_executor_backend: ExecutorBackend | None = knob(
        None,
        "mp: the model runs in a process of its own; default (also uni): in the engine's",
        spellings={"uni": None},
        not_yet=dict.fromkeys(("ray", "external_launcher"), _ONE_MACHINE),
    )
    tensor_parallel_size: int = knob(
        1, "ranks that share every layer of the model, each a process with a GPU, or cores, of its own", at_least=1
    )
    enforce_eager: bool = knob(False, "launch a GPU's kernels one by one, without CUDA graphs")
    trace_ops: bool = knob(
        False, "run each step's model in Python, op by op, and write each op's name, shapes and norm; for debugging"
    )
    num_threads: int | None = knob(
        None, "threads of the cpu backend; default: the cores this process may use", at_least=1, at_most=2**16
    )
    activation_dtype: ActivationDType = knob(
        "int8",
        "what the cpu backend rounds activations to where weights are block-quantised; int16 answers like float32, at "
        "nearly the same speed for one stream and about three fifths of it for prompts and for many at once",
    )

    def __post_init__(self) -> None:
        if self.device != "auto" and not re.fullmatch(r"cuda(:[0-9]{1,3})?", self.device):
            raise ConfigError(
                f"device is {self.device!r}, allowed are 'auto' and a GPU by its number: 'cuda:0', 'cuda:1'; "
                "backend='cpu' computes on the CPU"
            )

    @property
    def device_index(self) -> int:
        return int(self.device.partition(":")[2] or 0)


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveConfig:
    """Events, traces and checks."""

    event_log_size: int = knob(65536, "events kept in memory, the oldest dropped first; 0 keeps none", at_least=0)
    record: str | None = knob(None, "file to write the engine's event log to, for octavo viz, explain and replay")
    record_token_ids: bool = knob(False, "the event log has prompts and answers too, as token ids")
    max_logprobs: int = knob(20, "most logprobs that a request may ask for; -1: the whole vocabulary", at_least=-1)
    logprobs_mode: LogprobsMode = knob(
        "raw_logprobs",
        "log-probabilities of the model's own logits (raw), or of the distribution that tokens are drawn from "
        "(processed); or the logits of either",
    )
    otlp_traces_endpoint: str | None = knob(
        None, "URL that traces of requests are sent to, as OTLP over HTTP; needs the extra otel; default: no traces"
    )
    check_invariants: bool = knob(False, "check the cache's invariants after every step; slow, for tests")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Limits of a server's waiting queue."""

    max_num_queued_reqs: int | None = knob(None, "most waiting requests; more get 503; default: no limit", at_least=0)
    queue_timeout: float | None = knob(
        None, "most seconds a request waits before its first step; after them it gets 503; default: no limit"
    )

    def __post_init__(self) -> None:
        if self.queue_timeout is not None and self.queue_timeout <= 0:
            raise ConfigError(f"queue_timeout is {self.queue_timeout}, allowed is more than 0")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server's address, processes, limits and shutdown."""

    host: str | None = knob(None, "address to listen on; default: every IPv4 interface (127.0.0.1: this machine only)")
    port: int = knob(8000, "port to listen on; 0: any that is free", at_least=0, at_most=65535)
    uds: str | None = knob(None, "path of a Unix socket to listen on, in place of host and port")
    api_server_count: int = knob(1, "processes for HTTP, text and tokens; each talks to every engine", at_least=1)
    ssl_keyfile: str | None = knob(None, "private key; with ssl_certfile: serve https")
    ssl_certfile: str | None = knob(None, "certificate chain; with ssl_keyfile: serve https")
    ssl_ca_certs: str | None = knob(None, "authorities whose client certificates are accepted; every client needs one")
    timeout_keep_alive: int = knob(
        65, "seconds a connection may be idle; above proxies' and clients' limits, or they use closed ones", at_least=1
    )
    timeout_request_head: int = knob(30, "seconds for a request's headers to arrive", at_least=1)
    timeout_request_body: int = knob(
        300, "seconds for a request's body to arrive, and that a client may leave its answer unread", at_least=1
    )
    max_idle_connections: int = knob(
        1024, "most connections of a front end without a whole request; the longest idle one makes room", at_least=1
    )
    h11_max_incomplete_event_size: int = knob(65536, "most bytes of a request's headers or trailers", at_least=1024)
    h11_max_header_count: int = knob(256, "most headers of a request", at_least=1)
    shutdown_timeout: int = knob(
        0, "seconds that running requests may go on after SIGTERM or Ctrl-C; 0: end them at once", at_least=0
    )
    engine_hang_timeout: float = knob(
        300.0,
        "seconds without a sign of life after which the engine is killed and restarted; 0: never. Keep it above the "
        "longest step: minutes for a long prompt on a few cores. First steps compile kernels and get at least 600",
    )
    front_end_hang_timeout: float = knob(
        60.0, "seconds without a sign of life after which a front end is killed and restarted; 0: never"
    )
    enable_log_requests: bool = knob(False, "log a line for every request: its id, its size, its sampling parameters")
    disable_log_stats: bool = knob(False, "do not log the engine's throughput every ten seconds")

    def __post_init__(self) -> None:
        if self.uds is not None and self.host is not None:
            raise ConfigError(f"host is {self.host!r} and uds is {self.uds!r}, allowed is one of them")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("https needs both ssl_keyfile and ssl_certfile, got one of them")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_ca_certs is of no use without ssl_keyfile and ssl_certfile: give them, or drop it")
        for name in ("engine_hang_timeout", "front_end_hang_timeout"):
            seconds = getattr(self, name)
            if not (seconds == 0 or 1 <= seconds < math.inf):
                raise ConfigError(f"{name} is {seconds}, allowed are 1 or more seconds, and 0 for never")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All engine sections together; only engine/assemble.py reads it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
