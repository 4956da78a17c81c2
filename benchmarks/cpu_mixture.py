"""A small mixture of experts on the CPU against a dense model that reads as many bytes for a token: decode, in turns.

    python -m benchmarks.cpu_mixture [--threads 4] [--rounds 9] [--tokens 128]

Both are Qwen 3's shape with random weights. The mixture has 32 experts, of which a token takes 4; the dense model's MLP
is as wide as these and the router together. One request at a time; a round measures each model once, and the ratio of a
round is taken before the median, so that what else a machine does touches both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams
from octavo.observe.machine import cpu_name

_HIDDEN, _EXPERT, _EXPERTS, _CHOSEN, _LAYERS = 768, 256, 32, 4, 8
_SHAPE: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
_MIXTURE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "intermediate_size": _EXPERT * _CHOSEN,
    "moe_intermediate_size": _EXPERT,
    "num_experts": _EXPERTS,
    "num_experts_per_tok": _CHOSEN,
    "norm_topk_prob": True,
}
_DENSE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "intermediate_size": _EXPERT * _CHOSEN + -(-_EXPERTS // 3 // 32) * 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    print(f"{cpu_name()}, {args.threads or 'all'} threads, {args.tokens} tokens, median of {args.rounds} rounds")
    for quantization in (None, "int8", "int4"):
        with tempfile.TemporaryDirectory() as root:
            models = [
                _model(Path(root) / name, config, quantization, args.threads)
                for name, config in (("mixture", _MIXTURE), ("dense", _DENSE))
            ]
            for model in models:
                _per_token(model, args.tokens)
            rounds = [[_per_token(model, args.tokens) for model in models] for _ in range(args.rounds)]
            mixture, dense = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(one / other for one, other in rounds)
            name = quantization or "bfloat16"
            print(
                f"{name:9} mixture {mixture * 1e3:.3f} ms a token, dense {dense * 1e3:.3f}, ratio {ratio:.3f}",
                flush=True,
            )


def _model(folder: Path, config: dict[str, Any], quantization: str | None, threads: int) -> LLM:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_SHAPE | config))
    options: dict[str, Any] = {"num_threads": threads} if threads else {}
    return LLM(
        str(folder),
        load_format="dummy",
        backend="cpu",
        skip_tokenizer_init=True,
        max_model_len=1024,
        quantization=quantization,
        **options,
    )


def _per_token(llm: LLM, num_tokens: int) -> float:
    prompt = list(range(3, 35))
    times = []
    for count in (1, 1 + num_tokens):
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        llm.generate([prompt], params, use_tqdm=False)
        times.append(time.perf_counter() - begun)
    return (times[1] - times[0]) / num_tokens


if __name__ == "__main__":
    main()
