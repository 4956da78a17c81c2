"""Tables of vLLM's options that Octavo lacks, with the values that are accepted and the alternative to the others.

Python calls, the command line and docs/compatibility.md read these tables. Options that Octavo has are in config.py,
sampling_params.py and the server's settings, never here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from octavo.shown import shown

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class NotHere:
    """instead: the alternative, as the end of a sentence. nothing: accepted values, which have no effect, besides None,
    False and empty ones. is_idle: no value has an effect."""

    instead: str
    nothing: tuple[Any, ...] = ()
    is_idle: bool = False

    def asks_for_nothing(self, value: object) -> bool:
        """Whether the value may be ignored."""
        if self.is_idle or value is None or value is False:
            return True
        if isinstance(value, str | bytes | Collection) and not value:
            return True
        return any(type(value) is type(known) and value == known for known in self.nothing)

    def text_asks_for_nothing(self, text: str) -> bool:
        """The same for a value from the command line: 1, true, none, {}, float."""
        try:
            value = json.loads({"None": "null", "none": "null"}.get(text, text.lower()))
        except (ValueError, RecursionError):
            value = text
        return self.asks_for_nothing(value) or self.asks_for_nothing(text)

    def refusal(self, name: str, value: object) -> str:
        """The error message for a value that would have an effect."""
        return f"{name}={shown(value)} is not supported yet: {self.instead}"


def why_not(table: Mapping[str, NotHere], given: Mapping[Any, Any]) -> str | None:
    """The refusal of the first name in the table whose value would have an effect, or None."""
    for name, value in given.items():
        entry = table.get(name)
        if entry is not None and not entry.asks_for_nothing(value):
            return entry.refusal(name, value)
    return None


def _idle(reason: str, *names: str) -> dict[str, NotHere]:
    return dict.fromkeys(names, NotHere(reason, is_idle=True))


def _each(entry: Entry, *names: str) -> dict[str, Entry]:
    return dict.fromkeys(names, entry)


_ONE_DEVICE = "tensor_parallel_size runs a model on several GPUs here, data_parallel_size several engines"
_ENGINES_HERE = "all engines of data_parallel_size are started here, behind one address"
_PLAIN_LORA = "an adapter adds scale * B A to a matrix, and nothing else"
_NO_MEDIA = "models read text only"
_NO_COMPILER = "torch compiles nothing; graphs are captured when first needed, or never with enforce_eager"
_NO_SPECULATION = "each step generates one token per sequence"
_NO_TRANSFER = "octavo serve has --prefill-engines, and for several machines --role, --kv-listen and --kv-peer"
_NO_OFFLOAD = "weights and KV blocks stay on one device; a quantised GGUF file or a smaller max_model_len needs less"
_IN_EPLB_CONFIG = "it is a key of eplb_config"
_ROUTES = "an answer does not tell which experts its tokens used"
_FORMER_GRAMMAR = "use structured_outputs, a field of SamplingParams"
_ONE_GRAMMAR = "llguidance compiles every grammar, and structured_outputs has the switches"
_NO_PLUGINS = "the formats of octavo/text/answers are all; there are no plugins"
_FROM_FILE = "weights are computed as the file stores them; use a GGUF file of the quantisation you want"
_PROFILER = "use your own profiler; an LLM's events have the times of each step"
_TEXT_CONFIG = "change the checkpoint's config.json instead"

#: options of vLLM's LLM, AsyncLLM, EngineArgs and command line that have no field in config.py
ENGINE_OPTIONS: dict[str, NotHere] = {
    # the model
    "task": NotHere("use runner", ("auto",)),
    "override_pooler_config": NotHere("use pooler_config"),
    "tokenizer_mode": NotHere("the tokenizer is made from the checkpoint's own files", ("auto", "hf", "slow", "fast")),
    "tokenizer_revision": NotHere("the tokenizer has the model's revision; tokenizer= names another folder"),
    **_idle("no code of a checkpoint is executed", "code_revision", "trust_remote_code"),
    **_each(NotHere(_TEXT_CONFIG), "hf_config_path", "hf_overrides", "rope_scaling", "rope_theta"),
    "hf_token": NotHere("set the environment variable HF_TOKEN"),
    "config_format": NotHere("the configuration is read from config.json or GGUF metadata", ("auto", "hf")),
    **_each(NotHere("each model is Octavo's own code", ("auto", "vllm")), "model_impl", "model_class_overrides"),
    "model_weights": NotHere("give the weights' folder or file as model"),
    **_each(NotHere(_FROM_FILE), "quantization_config", "quantization_param_path"),
    **_idle("there is no such quantisation", "allow_deprecated_quantization"),
    **_each(
        NotHere("offline, logits_processors of SamplingParams takes functions"),
        "logits_processors",
        "logits_processor_pattern",
    ),
    "io_processor_plugin": NotHere("there are no plugins"),
    "override_attention_dtype": NotHere("attention computes in the model's dtype"),
    "override_neuron_config": NotHere("there is no such device"),
    "enable_prompt_embeds": NotHere("prompts are text or token ids"),
    "return_sampling_mask": NotHere("ask for logprobs instead"),
    "enable_sleep_mode": NotHere("close the LLM and create a new one: it starts in about a second"),
    "disable_sliding_window": NotHere("layers with a window keep it; set max_model_len to the window instead"),
    **_idle("special tokens are written as the tokenizer writes them", "spaces_between_special_tokens"),
    # loading
    "download_dir": NotHere("set the environment variable HF_HOME"),
    "ignore_patterns": NotHere("only what is needed is downloaded", ("original/**/*",)),
    "model_loader_extra_config": NotHere("files are mapped, and need no options"),
    **_idle("files are mapped", "safetensors_load_strategy", "max_parallel_loading_workers"),
    **_idle("loading shows no bar", "use_tqdm_on_load"),
    **_idle("there are no .pt files", "pt_load_map_location"),
    # many devices
    **_each(NotHere(_ONE_DEVICE, (1,)), "prefill_context_parallel_size", "decode_context_parallel_size", "nnodes"),
    **_each(NotHere(_ONE_DEVICE, (0,)), "node_rank", "ubatch_size"),
    **_idle("everything runs on this machine", "data_parallel_address", "data_parallel_rpc_port"),
    **_idle("everything runs on this machine", "master_addr", "master_port"),
    "data_parallel_size_local": NotHere(_ENGINES_HERE, (1,)),
    **_each(NotHere(_ENGINES_HERE, (0,)), "data_parallel_rank", "data_parallel_start_rank"),
    "data_parallel_backend": NotHere(_ENGINES_HERE, ("mp",)),
    **_each(NotHere(_ENGINES_HERE), "data_parallel_hybrid_lb", "data_parallel_external_lb", "headless"),
    **_each(NotHere(_ONE_DEVICE), "worker_use_ray", "ray_workers_use_nsight", "enable_dbo"),
    **_idle("a context is on one device", "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size"),
    **_each(NotHere("the worker is Octavo's own", ("auto",)), "worker_cls", "worker_extension_cls"),
    "scheduler_cls": NotHere("the scheduler is Octavo's own; scheduling_policy chooses its order"),
    **_idle("engines do not wait for each other", "disable_nccl_for_dp_synchronization"),
    **_each(NotHere(_IN_EPLB_CONFIG), "eplb_log_balancedness", "eplb_step_interval", "eplb_window_size"),
    "num_redundant_experts": NotHere(_IN_EPLB_CONFIG, (0,)),
    "expert_placement_strategy": NotHere("a rank begins with consecutive experts; enable_eplb moves them", ("linear",)),
    **_idle("tokens do not travel: one all-reduce adds up what the ranks' experts compute", "all2all_backend"),
    "moe_backend": NotHere("each backend has its own kernels for experts", ("auto",)),
    "enable_return_routed_experts": NotHere(_ROUTES),
    **_idle("there is no dual batch", "dbo_decode_token_threshold", "dbo_prefill_token_threshold"),
    # memory and cache
    **_idle("a preempted sequence is computed again, not swapped", "swap_space"),
    **_each(NotHere(_NO_OFFLOAD, (0, 0.0)), "cpu_offload_gb", "kv_offloading_size", "offload_group_size"),
    **_each(NotHere(_NO_OFFLOAD), "cpu_offload_params", "offload_params"),
    "offload_backend": NotHere(_NO_OFFLOAD, ("auto",)),
    **_idle("nothing is offloaded", "offload_num_in_group", "offload_prefetch_step", "kv_offloading_backend"),
    **_idle("blocks are found by a hash of their content, whatever its name", "prefix_caching_hash_algo"),
    "kv_cache_dtype_skip_layers": NotHere("KV blocks of all layers have one type"),
    "kv_sharing_fast_prefill": NotHere("no model of ours shares KV between layers"),
    **_idle("there are no recurrent models yet", "mamba_cache_dtype", "mamba_ssm_cache_dtype"),
    **_idle("there are no recurrent models yet", "mamba_block_size", "mamba_cache_mode"),
    "disable_hybrid_kv_cache_manager": NotHere("layers with a window always have a cache group of their own"),
    **_idle("there is one block manager", "use_v2_block_manager"),
    **_idle("there is no cascade attention", "disable_cascade_attn"),
    # steps
    **_idle(_NO_COMPILER, "compilation_config", "optimization_level", "cudagraph_capture_sizes"),
    **_idle(_NO_COMPILER, "max_cudagraph_capture_size", "max_seq_len_to_capture", "max_context_len_to_capture"),
    **_idle("there is one mode", "performance_mode"),
    "attention_config": NotHere("attention_backend chooses a GPU's attention"),
    "kernel_config": NotHere("backend chooses the kernels"),
    **_each(NotHere(_PROFILER), "profiler_config", "enable_layerwise_nvtx_tracing"),
    "max_num_active_seqs": NotHere("set max_num_seqs"),
    **_idle("the token budget limits the prompts in progress", "max_num_partial_prefills", "max_long_partial_prefills"),
    "long_prefill_token_threshold_adaptive": NotHere("set long_prefill_token_threshold"),
    "prefill_schedule_interval": NotHere("prompts start in any step that has room", (0, 1)),
    "scheduler_delay_factor": NotHere("prompts start in any step that has room", (0, 0.0)),
    **_idle("schedule_conservativeness sets how many blocks are kept free", "scheduler_reserve_full_isl"),
    "watermark": NotHere("schedule_conservativeness keeps blocks free", (0, 0.0)),
    "num_scheduler_steps": NotHere("async_scheduling plans ahead", (1,)),
    **_idle("every step's tokens are returned", "multi_step_stream_outputs"),
    "preemption_mode": NotHere("a preempted sequence is computed again", ("recompute",)),
    **_idle("async_scheduling sets whether steps overlap", "disable_async_output_proc"),
    # features
    **_each(NotHere(_PLAIN_LORA), "long_lora_scaling_factors", "default_mm_loras", "enable_lora_bias"),
    "lora_extra_vocab_size": NotHere("an adapter cannot change the vocabulary", (0,)),
    **_idle("ranks share an adapter as they share the matrix", "fully_sharded_loras"),
    **_each(NotHere(_NO_SPECULATION), "speculative_config", "speculative_model", "spec_method", "spec_model"),
    **_each(NotHere(_NO_SPECULATION, (0,)), "num_speculative_tokens", "spec_tokens", "num_lookahead_slots"),
    **_idle(_ONE_GRAMMAR, "structured_outputs_config", "guided_decoding_backend", "guided_decoding_disable_fallback"),
    **_idle(_ONE_GRAMMAR, "guided_decoding_disable_any_whitespace", "guided_decoding_disable_additional_properties"),
    "reasoning_parser_plugin": NotHere(_NO_PLUGINS),
    **_each(NotHere(_NO_TRANSFER), "kv_transfer_config", "ec_transfer_config"),
    "weight_transfer_config": NotHere("weights are read once, from files"),
    "additional_config": NotHere("there are no plugins"),
    # images, sound
    **_idle(_NO_MEDIA, "limit_mm_per_prompt", "language_model_only", "mm_processor_cache_gb"),
    **_idle(_NO_MEDIA, "mm_processor_cache_type", "mm_shm_cache_max_object_size_mb", "mm_encoder_tp_mode"),
    **_idle(_NO_MEDIA, "mm_encoder_attn_backend", "disable_mm_preprocessor_cache", "disable_chunked_mm_input"),
    **_idle(_NO_MEDIA, "skip_mm_profiling", "allowed_local_media_path", "allowed_media_domains"),
    **_each(NotHere(_NO_MEDIA), "mm_processor_kwargs", "media_io_kwargs", "mm_encoder_only", "enable_mm_embeds"),
    "interleave_mm_strings": NotHere(_NO_MEDIA),
    "video_pruning_rate": NotHere(_NO_MEDIA, (0, 0.0)),
    # observation
    "collect_detailed_traces": NotHere("otlp_traces_endpoint sends a span per request"),
    **_idle("no metric is hidden", "show_hidden_metrics_for_version"),
    **_each(NotHere("an LLM's events follow each block"), "kv_events_config", "kv_cache_metrics"),
    **_idle("there are no such metrics", "kv_cache_metrics_sample"),
    **_each(NotHere("there are no such metrics"), "cudagraph_metrics", "enable_mfu_metrics"),
    "enable_logging_iteration_details": NotHere("an LLM's events describe each step"),
    **_idle("there is one engine", "aggregate_engine_logging"),
}

#: options of vLLM's engine that here are a server's only
SERVER_ONLY: dict[str, NotHere] = {
    **_idle("only a server writes such lines", "disable_log_stats"),
    **_idle("requests are logged only with enable_log_requests", "disable_log_requests"),
    "enable_log_requests": NotHere("only a server writes such lines: octavo serve --enable-log-requests"),
    **_idle("only a server has a name for its model", "served_model_name"),
    "stream_interval": NotHere(
        "set SamplingParams' stream_interval; a server has octavo serve --stream-interval", (1,)
    ),
    **_each(NotHere("only a server's queue has a limit"), "max_num_queued_reqs", "max_num_queued_tokens"),
}

#: flags of `vllm serve` alone
SERVER_FLAGS: dict[str, NotHere] = {
    "prompt_adapters": NotHere(_PLAIN_LORA),
    "tool_parser_plugin": NotHere(_NO_PLUGINS),
    "tool_server": NotHere("tools are called by the client"),
    "exclude_tools_when_tool_choice_none": NotHere("the template gets all tools that are sent"),
    "response_role": NotHere("answers have the role assistant", ("assistant",)),
    "middleware": NotHere("put a proxy in front"),
    "enable_ssl_refresh": NotHere("restart the server with the new certificate"),
    "ssl_cert_reqs": NotHere("with ssl_ca_certs every client needs a certificate", (0,)),
    **_idle("the log has one level", "uvicorn_log_level"),
    **_idle("there is no access log; enable_log_requests writes a line per request", "disable_uvicorn_access_log"),
    "log_config_file": NotHere("the log goes to standard error in one form"),
    **_idle("server errors are always logged with their stack", "log_error_stack"),
    **_idle("prompts are not logged", "max_log_len"),
    **_each(NotHere("outputs are not logged"), "enable_log_outputs", "enable_log_deltas"),
    **_idle("api_server_count sets the number of front ends", "disable_frontend_multiprocessing"),
    **_idle("/load is always served", "enable_server_load_tracking"),
    **_idle("usage always has the number of cached prompt tokens", "enable_prompt_tokens_details"),
    "tokens_only": NotHere("send token ids as the prompt, and return_token_ids"),
    **_each(NotHere("the server speaks HTTP"), "grpc_port", "grpc"),
}

#: current and former fields of vLLM's SamplingParams that sampling_params.py lacks
SAMPLING_FIELDS: dict[str, NotHere] = {
    "guided_decoding": NotHere(_FORMER_GRAMMAR),
    "extra_args": NotHere("there are no plugins to read them"),
    "spaces_between_special_tokens": NotHere("special tokens are written as the tokenizer writes them", (True,)),
    "watermarking": NotHere("output is not marked"),
    "prompt_logprob_token_ids": NotHere("prompt_logprobs gives the most likely tokens"),
    "prompt_logprob_start": NotHere("prompt_logprobs cover the whole prompt", (0,)),
    "routed_experts_prompt_start": NotHere(_ROUTES, (0,)),
    "trace_decode_token_ids": NotHere("put the tokens into the prompt and ask for prompt_logprobs"),
    **_idle("each request always has its own parameters", "skip_clone"),
}

#: current and former fields of vLLM's PoolingParams that pooling_params.py lacks
POOLING_FIELDS: dict[str, NotHere] = {
    **_each(NotHere("models give the numbers of all classes of all tokens"), "step_tag_id", "returned_token_ids"),
    **_each(NotHere("take the numbers of tokens, token_embed, and compare them yourself"), "late_interaction_params"),
    "late_chunking_params": NotHere("take the numbers of tokens, token_embed, and pool them yourself"),
    "extra_kwargs": NotHere("there are no plugins to read them"),
    **_idle("each is done where it is needed", "output_kind", "requires_token_ids", "skip_reading_prefix_cache"),
}

#: fields of vLLM's BeamSearchParams that sampling_params.py lacks
BEAM_FIELDS = {
    "structured_outputs": NotHere("beams follow no grammar; sample with n"),
    "watermarking": SAMPLING_FIELDS["watermarking"],
}

#: keyword arguments of vLLM's generate and chat that Octavo lacks
CALL_ARGUMENTS: dict[str, NotHere] = {
    "prompt_token_ids": NotHere("pass token ids as prompts: a list of ints for each"),
    "prompt_adapter_request": NotHere(_PLAIN_LORA),
    "tokenization_kwargs": NotHere("tokenise with get_tokenizer().encode, and pass the token ids"),
    "truncation_kwargs": NotHere("set truncate_prompt_tokens in the SamplingParams"),
    "mm_processor_kwargs": NotHere(_NO_MEDIA),
    "guided_options_request": NotHere(_FORMER_GRAMMAR),
    "data_parallel_rank": NotHere("the prompts of a call are shared among all engines", (0,)),
    **_idle("the beams of all prompts share the engine's steps", "concurrency_limit"),
    "kv_hints": NotHere("the prefix cache keeps the most recently used blocks"),
}

#: keys of vLLM's prompt dicts that Octavo lacks
PROMPT_KEYS: dict[str, NotHere] = {
    **_each(NotHere(_NO_MEDIA), "multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs"),
    "prompt_embeds": NotHere("prompts are text or token ids"),
    "token_type_ids": NotHere("generating models have no token types"),
    "encoder_prompt": NotHere("models have a decoder only"),
    "decoder_prompt": NotHere("models have a decoder only; pass its text as 'prompt'"),
}

#: methods and attributes of vLLM's LLM and AsyncLLM that Octavo lacks
METHODS: dict[str, str] = {
    "reward": "classify, or encode with pooling_task='classify', gives a reward model's numbers",
    **_each("use stream, or call from several threads", "enqueue", "enqueue_chat", "wait_for_completion"),
    **_each("close it and create a new one: it starts in about a second", "sleep", "wake_up", "is_sleeping"),
    **_each(_ONE_DEVICE, "collective_rpc", "get_world_size", "scale_elastic_ep"),
    "apply_model": "a model is a compiled program, not a torch module",
    **_each(_PROFILER, "start_profile", "stop_profile"),
    "reset_mm_cache": _NO_MEDIA,
    "pin_lora": "the slots keep the adapters that were used last",
    "llm_engine": "use get_tokenizer, get_metrics, model_info, stats, events or card",
    **_each("use get_tokenizer, stats or model_info", "engine", "engine_core"),
    "set_tokenizer": "pass tokenizer= when you create it",
    **_each("weights are read once, from files", "update_weights", "init_weight_transfer_engine"),
    **_each("weights are read once, from files", "start_weight_update", "finish_weight_update", "get_weight_version"),
    **_each("abort what runs, and send it again later", "pause_generation", "resume_generation"),
    **_each("is_alive says whether it serves, and check_health why not", "is_running", "is_stopped", "errored"),
    "dead_error": "check_health raises it",
    **_each("model_info, card and stats have the sizes", "model_config", "vllm_config"),
    **_each("model_info, card and stats have the sizes", "get_model_config", "get_vllm_config"),
    "from_vllm_config": "use from_engine_args",
    "is_tracing_enabled": "see otlp_traces_endpoint",
    "do_log_stats": "stats has the current numbers",
}
