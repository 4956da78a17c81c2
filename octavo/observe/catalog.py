"""All metrics: name, kind and meaning. Names, kinds and labels are vLLM's.

A metric `x` is exported twice with the same value, as `octavo:x` and as `vllm:x`, so that dashboards and alerts for
vLLM keep working. docs/observability.md explains them; a test compares it with this list.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Literal

NAMESPACES = ("octavo", "vllm")

#: name -> what it means
GAUGES: dict[str, str] = {
    "num_requests_running": "Sequences that are computed in every step.",
    "num_requests_waiting": "Sequences that wait to be computed, new ones and preempted ones.",
    "num_requests_waiting_by_reason": "Sequences that wait, by what they wait for.",
    "kv_cache_usage_perc": "Share of KV blocks that running sequences hold, 0 to 1.",
    "kv_cache_sharing_saved_perc": "Share of KV blocks that running sequences save by sharing, 0 to 1.",
    "cache_config_info": "The KV cache's sizes and options as labels; the value is always 1.",
    "lora_requests_info": "Adapters of running and waiting requests, as labels; the value is the time.",
}

#: name -> what it means, labels beside model_name and engine. Prometheus adds _total to the name.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prompt_tokens": ("Prompt tokens of requests whose prefill is done, cached ones included.", ()),
    "prompt_tokens_cached": ("The part of prompt_tokens that the prefix cache held.", ()),
    "prompt_tokens_by_source": ("Prompt tokens, by whether they were computed or in the prefix cache.", ("source",)),
    "generation_tokens": ("Tokens generated.", ()),
    "forced_tokens": ("The part of generation_tokens that grammars forced, so that no step drew them.", ()),
    "request_success": ("Sequences that ended, by reason.", ("finished_reason",)),
    "num_preemptions": ("Times a running sequence gave up its blocks and waited again.", ()),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", ()),
    "prefix_cache_hits": ("Prompt tokens found there.", ()),
    "kv_transfer_requests": (
        "Requests whose prompt another engine might compute, by what came of it.",
        ("result",),
    ),
    "kv_transfer_tokens": ("Prompt tokens whose blocks came from another engine.", ()),
    "kv_transfer_bytes": ("Bytes of blocks that came from other engines.", ()),
    "corrupted_requests": ("Sequences that ended because their logits were NaN or allowed no token.", ()),
    "admission_rejections": ("Requests refused on arrival, by reason.", ("reason",)),
    "step_seconds": ("Time spent in steps, by part: schedule, execute, update.", ("part",)),
}

#: of the server's store of responses; not in vLLM. name -> kind, what it means
STORED_RESPONSES: dict[str, tuple[Literal["gauge", "counter"], str]] = {
    "stored_responses": ("gauge", "Responses that are kept."),
    "stored_response_bytes": ("gauge", "Their bytes."),
    "responses_dropped": ("counter", "Responses that were dropped: to make room, or unused for too long."),
}

_TTFT_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
# vLLM begins at 10 ms, in which a small model on a GPU generates ten tokens
_TOKEN_BOUNDS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_N_BOUNDS = (1, 2, 5, 10, 20, 50, 100)
_PREEMPTION_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100)

#: name -> what it means, upper bounds of its buckets; None: 1, 2, 5, 10, 20, ... up to the model's context
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _TTFT_BOUNDS),
    "inter_token_latency_seconds": ("Between two tokens of a sequence.", _TOKEN_BOUNDS),
    "request_time_per_output_token_seconds": ("A sequence's mean time per token after the first.", _TOKEN_BOUNDS),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", _REQUEST_BOUNDS),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", _REQUEST_BOUNDS),
    "request_inference_time_seconds": ("From a request's first step to its end.", _REQUEST_BOUNDS),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", _REQUEST_BOUNDS),
    "request_decode_time_seconds": ("From a request's first token to its end.", _REQUEST_BOUNDS),
    "kv_transfer_time_seconds": ("From asking another engine for blocks until they were there.", _REQUEST_BOUNDS),
    "iteration_tokens_total": (
        "Tokens generated by a step, plus the computed prompt tokens of requests whose prefill it completed.",
        _STEP_BOUNDS,
    ),
    "request_prompt_tokens": ("A request's prompt tokens.", None),
    "request_generation_tokens": ("Tokens generated, by sequence.", None),
    "request_max_num_generation_tokens": ("Tokens generated, of each request's longest sequence.", None),
    "request_params_n": ("The n that requests ask for.", _N_BOUNDS),
    "request_params_max_tokens": ("The max_tokens that requests ask for, at most what the context leaves.", None),
    "request_num_preemptions": ("Times a request was preempted.", _PREEMPTION_BOUNDS),
    "request_prefill_kv_computed_tokens": ("A request's prompt tokens that the prefix cache did not hold.", None),
}


def bounds(max_model_len: int) -> dict[str, tuple[float, ...]]:
    """The bucket bounds of every histogram."""
    return {name: own if own is not None else _counts_up_to(max_model_len) for name, (_, own) in HISTOGRAMS.items()}


def _counts_up_to(limit: int) -> tuple[float, ...]:
    steps = (digit * 10**power for power in range(len(str(limit))) for digit in (1, 2, 5))
    return tuple(float(step) for step in takewhile(lambda step: step <= limit, steps))
