"""All options of an engine, one section for each component; a server's own are in `server_config.py`.

Each field is also a flag: `max_num_seqs` is `--max-num-seqs`. `checked_fields.py` checks types and ranges.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.checked_fields import checked, knob
from octavo.eplb_config import EPLBConfig, read_eplb_config, refuse_eplb
from octavo.errors import ConfigError
from octavo.lora_config import LoRAConfig
from octavo.pooler_options import read_pooler_options
from octavo.vllm_options import NotHere

DTypeOption = Literal["auto", "float32", "bfloat16", "float16"]
ContentFormat = Literal["auto", "string", "openai"]
RunnerOption = Literal["auto", "generate", "pooling"]
ConvertOption = Literal["auto", "none", "embed", "classify"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16", "fp8", "int8"]
SchedulingPolicy = Literal["fcfs", "priority"]
DataParallelRouting = Literal["prefix", "work", "turns"]
QuantizationOption = Literal[
    "fp8", "int8", "int4", "awq", "bitsandbytes", "compressed-tensors", "gguf", "gptq", "mxfp4"
]
BackendOption = Literal["auto", "triton", "cpu", "reference"]
ActivationDType = Literal["int8", "int16", "bfloat16"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
ExecutorBackend = Literal["mp", "ray"]
AttentionBackendOption = Literal["auto", "cuda", "hopper", "triton", "flash_attn_4"]

_MAX_COUNT = 2**31 - 1  # kernels count in int32

#: torch's short names, as vLLM takes them
_SHORT_DTYPES = {"half": "float16", "float": "float32"}
_OTHER_KV_CODES = NotHere("KV blocks of 8 bits hold 'fp8' (e4m3) or 'int8', with a scale for each layer's KV heads")
_MAPPED = NotHere("'auto' maps .safetensors and .gguf files, and there are no other loaders")
_LAUNCHED_HERE = NotHere("the engine starts its ranks: as processes ('mp') or on a Ray cluster ('ray')")
_FEW_BACKENDS = NotHere("a GPU's attention is 'triton', or 'flash_attn_4' for long chunks where its package is")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model's weights and how to load them."""

    model: str = knob("smollm2", "a Hugging Face folder or hub id, a .gguf file, or a packaged model's name")
    runner: RunnerOption = knob(
        "auto",
        "pooling: embed or classify texts, as `LLM.embed` and `LLM.classify` do; generate: answer them; auto: pooling "
        "for encoders and for what sentence-transformers or a class without LM head saved",
        not_yet={"draft": NotHere("allowed are 'auto', 'generate' and 'pooling'")},
    )
    convert: ConvertOption = knob(
        "auto",
        "embed: a model that pools embeds texts, whatever its head; classify: it must have a head for classes; none: "
        "no decoder is made to embed; auto: as its class says",
    )
    pooler_config: str | dict[str, Any] | None = knob(
        None, "how hidden states are pooled, as JSON with pooling_type and use_activation; default: as its files say"
    )
    tokenizer: str | None = knob(None, "a folder or hub id to take the tokenizer from; default: the model's own")
    skip_tokenizer_init: bool = knob(False, "load no tokenizer; prompts must be token ids and outputs have no text")
    chat_template: str | None = knob(None, "a Jinja chat template or its file's path; default: the model's own")
    chat_template_content_format: ContentFormat = knob(
        "auto",
        "how the template gets a message's content: as one text (string) or as a list of parts (openai); auto: the "
        "way that the template reads it",
    )
    reasoning_parser: str | None = knob(
        None, "the marks around the model's thoughts; default: as its chat template shows; none: thoughts are text"
    )
    generation_config: str = knob(
        "auto",
        "where sampling defaults come from: auto, the model's own files; vllm, SamplingParams alone; or a folder with "
        "a generation_config.json",
    )
    override_generation_config: str | dict[str, Any] | None = knob(
        None, "other sampling defaults, as JSON with the keys of a generation_config.json; null takes one away"
    )
    revision: str | None = knob(None, "branch, tag or commit of a hub model")
    dtype: DTypeOption = knob(
        "auto",
        "auto computes with the weights as the file stores them, on a GPU in 16 bits; others convert at load",
        spellings=_SHORT_DTYPES,
    )
    quantization: QuantizationOption | None = knob(
        None,
        "fp8, int8, int4: quantise a dense checkpoint's layers as they load; default (also auto): as the checkpoint "
        "stores them. Another method's name asks that the checkpoint be of that method",
        spellings={"auto": None, "awq_marlin": "awq", "gptq_marlin": "gptq"},
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

    def __post_init__(self) -> None:
        if self.pooler_config is not None:
            read_pooler_options(self.pooler_config)


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
        "element type of KV blocks; auto: as the checkpoint's kv_cache_scheme says, else as the weights; fp8 and int8 "
        "are codes of 8 bits, with the checkpoint's scales or calculate_kv_scales",
        spellings={**_SHORT_DTYPES, "fp8_e4m3": "fp8"},
        not_yet=dict.fromkeys(
            (
                *("fp8_e5m2", "fp8_inc", "fp8_ds_mla", "fp8_per_token_head", "nvfp4"),
                *("int8_per_token_head", "int4_per_token_head"),
            ),
            _OTHER_KV_CODES,
        ),
    )
    calculate_kv_scales: bool = knob(
        False,
        "set the scales of fp8 and int8 KV blocks by a run of pseudorandom tokens at the start, where the checkpoint "
        "has none; off: fp8 blocks then hold the numbers themselves",
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
    async_scheduling: bool | None = knob(
        None, "schedule the next step while this one runs; default: on GPUs, and where workers have their own processes"
    )
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
    data_parallel_routing: DataParallelRouting = knob(
        "prefix",
        "which of several engines a request goes to; prefix: the one with the least work once it has the request, of "
        "whose prompt it may hold a part; work: the one with the least work before; turns: each in turn",
    )
    distributed_executor_backend: ExecutorBackend | None = knob(
        None,
        "mp: each rank of the model is a process on this machine; ray: an actor on a Ray cluster; default (also uni): "
        "one rank is in the engine's process, several are mp",
        spellings={"uni": None},
        not_yet={"external_launcher": _LAUNCHED_HERE},
    )
    tensor_parallel_size: int = knob(
        1, "ranks that share every layer of the model, each a process with a GPU, or cores, of its own", at_least=1
    )
    pipeline_parallel_size: int = knob(
        1, "stages of consecutive layers, each of tensor_parallel_size ranks", at_least=1
    )
    enable_expert_parallel: bool = knob(
        False,
        "the ranks of tensor_parallel_size divide a mixture's experts among them, each whole on one rank; otherwise "
        "each rank has a part of every expert",
    )
    enable_eplb: bool = knob(
        False, "experts of enable_expert_parallel change places between ranks as their measured load asks"
    )
    eplb_config: str | dict[str, Any] | None = knob(
        None, "when they do, as JSON with window_size, step_interval, num_redundant_experts and the like"
    )
    disable_custom_all_reduce: bool = knob(
        False, "ranks on GPUs add up small messages by NCCL, too, and not over peer memory by Octavo's own kernel"
    )
    enforce_eager: bool = knob(False, "launch a GPU's kernels one by one, without CUDA graphs")
    deterministic: bool = knob(
        False,
        "a sequence's tokens and log-probabilities do not depend, to the bit, on what else runs, on how its prompt is "
        "cut, nor on what is cached; on a GPU slower: every kernel adds up in one order (vLLM: VLLM_BATCH_INVARIANT)",
    )
    trace_ops: bool = knob(
        False, "run each step's model in Python, op by op, and write each op's name, shapes and norm; for debugging"
    )
    num_threads: int | None = knob(
        None, "threads of the cpu backend; default: the cores this process may use", at_least=1, at_most=2**16
    )
    activation_dtype: ActivationDType = knob(
        "int8",
        "what the cpu backend rounds activations to where weights are block-quantised; int16 answers like float32, at "
        "nearly the same speed for one stream and about three fifths of it for prompts and for many at once; bfloat16: "
        "the same, and to bfloat16 where weights are bfloat16, which doubles such products on CPUs with AVX512-BF16",
    )

    def __post_init__(self) -> None:
        if self.device != "auto" and not re.fullmatch(r"cuda(:[0-9]{1,3})?", self.device):
            raise ConfigError(
                f"device is {self.device!r}, allowed are 'auto' and a GPU by its number: 'cuda:0', 'cuda:1'; "
                "backend='cpu' computes on the CPU"
            )
        if self.deterministic and self.attention_backend != "auto":
            raise ConfigError(
                f"attention_backend is {self.attention_backend!r}, and deterministic is True, which has its own "
                "attention: leave attention_backend at 'auto', or set deterministic=False"
            )
        assert self.eplb or not self.enable_eplb, "it is read, and so checked"
        if self.distributed_executor_backend == "ray" and self.device != "auto":
            raise ConfigError(
                f"device is {self.device!r}, and distributed_executor_backend is 'ray': Ray chooses the GPUs; leave "
                "device at 'auto', or the backend at 'mp'"
            )

    @property
    def eplb(self) -> EPLBConfig | None:
        """None: experts stay where they are."""
        if not self.enable_eplb and self.eplb_config is None:
            return None
        config = read_eplb_config(self.eplb_config)
        refuse_eplb(self.enable_eplb, self.enable_expert_parallel, self.deterministic)
        return config

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
class EngineConfig:
    """All engine sections together; only engine/assemble.py reads it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    def __post_init__(self) -> None:
        if self.cache.calculate_kv_scales and (stages := self.backend.pipeline_parallel_size) > 1:
            raise ConfigError(
                f"calculate_kv_scales is set and pipeline_parallel_size is {stages}, allowed is 1: no stage sees all "
                "layers. Take a checkpoint with scales, or kv_cache_dtype='fp8' without them"
            )
