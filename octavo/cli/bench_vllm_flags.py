"""What vLLM's users type after `vllm bench` and Octavo lacks: flags, and names of data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from octavo.vllm_options import ENGINE_OPTIONS, NotHere

_AS_LINES = "write its prompts as lines of JSON, and use --dataset-name custom"
_ONE_PREFIX = "random with --random-prefix-len has a prefix that all prompts share"
_ONLY_TEXT = "benchmarks send text only"

#: data set -> what takes its place
_DATASETS = {
    "sonnet": _ONE_PREFIX,
    "prefix_repetition": _ONE_PREFIX,
    "burstgpt": "--burstiness below 1 makes bursts, and custom takes lengths from a file",
    "timed_trace": "--request-rate and --burstiness set when requests are sent",
    **dict.fromkeys(("hf", "spec_bench", "speed_bench"), _AS_LINES),
    **dict.fromkeys(("random-mm", "custom_mm", "custom_image", "custom_audio"), _ONLY_TEXT),
    "random-rerank": "benchmarks generate text",
}

_OF_DATASETS = {
    **dict.fromkeys(
        ("hf_split", "hf_subset", "hf_name", "hf_output_len"), NotHere(f"no hub data set is read; {_AS_LINES}")
    ),
    **dict.fromkeys(("sonnet_input_len", "sonnet_output_len", "sonnet_prefix_len"), NotHere(_ONE_PREFIX)),
    **dict.fromkeys(
        [f"prefix_repetition_{part}" for part in ("prefix_len", "suffix_len", "num_prefixes", "output_len")],
        NotHere(_ONE_PREFIX),
    ),
    "random_batch_size": NotHere("a request has one prompt", (1,)),
    **dict.fromkeys(("no_stream", "enable_multimodal_chat"), NotHere("no hub data set is read", is_idle=True)),
    **dict.fromkeys(
        ("skip_chat_template", "custom_skip_chat_template"), NotHere("prompts are sent as they are", is_idle=True)
    ),
}

#: flags of `vllm bench serve`
SERVE_FLAGS: dict[str, NotHere] = {
    **_OF_DATASETS,
    **{name: ENGINE_OPTIONS[name] for name in ("trust_remote_code", "tokenizer_mode")},
    "request_id_prefix": NotHere("requests have no ids", is_idle=True),
    "profile": ENGINE_OPTIONS["profiler_config"],
    "lora_modules": NotHere("--model takes the name of an adapter that the server has"),
    "use_beam_search": NotHere("""send it as --extra-body '{"use_beam_search": true}'"""),
    "insecure": NotHere("a server's certificate is always checked"),
    **dict.fromkeys(
        ("plot_timeline", "plot_dataset_stats"), NotHere("--plot draws the times of several request rates")
    ),
}

#: flags of `vllm bench throughput`
THROUGHPUT_FLAGS: dict[str, NotHere] = {
    **_OF_DATASETS,
    "disable_detokenize": NotHere("no text is made of the tokens", is_idle=True),
    "async_engine": NotHere("the engine runs in this process; octavo bench serve measures a server"),
    "use_beam_search": NotHere("octavo bench sharing measures beams"),
    "profile": ENGINE_OPTIONS["profiler_config"],
    "lora_path": NotHere("octavo serve --lora-modules, and octavo bench serve --model ADAPTER, measure an adapter"),
}

#: flags of `vllm bench latency`
LATENCY_FLAGS: dict[str, NotHere] = {
    name: THROUGHPUT_FLAGS[name] for name in ("disable_detokenize", "use_beam_search", "profile")
}


def dataset_name(allowed: Sequence[str]) -> Callable[[str], str]:
    """Reads the value of --dataset-name. A data set that vLLM alone has is refused with what takes its place."""

    def read(name: str) -> str:
        if name in allowed:
            return name
        instead = f": {_DATASETS[name]}" if name in _DATASETS else ""
        raise argparse.ArgumentTypeError(f"{name!r} is not supported{instead}; allowed are {', '.join(allowed)}")

    return read
