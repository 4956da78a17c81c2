"""What adapters cost on a GPU: decode steps and prompts without slots, with slots, and with an adapter a sequence.

    python -m benchmarks.lora llama-3.1-8b [--adapters 32] [--rank 16] [--batches 1 32 256] [--targets q_proj v_proj]

A model is a folder of examples/configs, with random weights; adapters are random, too, and by default of every
projection. Sequence i of a batch has adapter i modulo their number. Times are taken as by benchmarks/deterministic.py:
a decode step's is that of 64 more tokens for every sequence, over 64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from octavo import LLM, LoRARequest, SamplingParams
from octavo.config import ModelConfig
from octavo.kernels.parameters import Shape
from octavo.kernels.tensor import DType, from_array
from octavo.lora.folder import WEIGHTS_NAME
from octavo.models.loader import open_checkpoint
from octavo.models.registry import parameters_of
from octavo.models.safetensors_writer import SafetensorsWriter
from octavo.models.weight_files import SINGLE_NAME

MORE_TOKENS = 64
PROMPT_TOKENS, NUM_PROMPTS = 2048, 8
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt whose answer is timed")
    parser.add_argument("--targets", nargs="+", default=list(PROJECTIONS), help="the projections with adapters")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    print(f"{name}, torch {torch.__version__}, {args.model}, contexts of {args.context}")
    print(f"{args.adapters} adapters of rank {args.rank} of {', '.join(args.targets)}")
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), args.model, args.rank, args.targets)
        adapters = [LoRARequest(f"adapter-{number}", number, folder) for number in range(1, args.adapters + 1)]
        slots = {"enable_lora": True, "max_loras": args.adapters, "max_lora_rank": args.rank}
        plain = measure(args, {}, {"no slots": []})["no slots"]
        with_slots = measure(args, slots, {"none of them": [], "one each": adapters})
    columns = {"no slots": plain, **with_slots}
    print(f"{'':24}" + "".join(f"{column:>14}" for column in columns) + f"{'ratio':>9}{'ratio':>9}")
    for what, before in plain.items():
        times = [column[what] for column in columns.values()]
        ratios = "".join(f"{after / before:9.3f}" for after in times[1:])
        print(f"{what:24}" + "".join(f"{one:14.3f}" for one in times) + ratios)


def write_adapter(folder: Path, model: str, rank: int, targets: list[str]) -> None:
    """One folder: its numbers do not matter, and each adapter has a slot of its own all the same."""
    options = ModelConfig(model=f"examples/configs/{model}", load_format="dummy")
    shapes = parameters_of(open_checkpoint(options, draws_on_device=True).architecture)
    layout: dict[str, tuple[DType, Shape]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in targets:
            layout[f"base_model.model.{module}.lora_A.weight"] = "F16", (rank, shape[1])
            layout[f"base_model.model.{module}.lora_B.weight"] = "F16", (shape[0], rank)
    rng = np.random.default_rng(0)
    with SafetensorsWriter(folder, layout) as writer:
        for name, (_, shape) in layout.items():
            numbers = np.float32(0.01) * rng.standard_normal(shape, np.float32)
            writer.write(name, from_array(numbers.astype(np.float16)))
    (folder / SINGLE_NAME).rename(folder / WEIGHTS_NAME)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": rank, "target_modules": targets}))


def measure(
    args: argparse.Namespace, slots: dict[str, object], uses: dict[str, list[LoRARequest]]
) -> dict[str, dict[str, float]]:
    """Milliseconds, for each use of the same engine."""
    found: dict[str, dict[str, float]] = {use: {} for use in uses}
    with LLM(
        f"examples/configs/{args.model}", load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False,
        max_model_len=max(args.context + 2 * MORE_TOKENS, PROMPT_TOKENS + 1), **slots,
    ) as llm:  # fmt: skip
        for use, adapters in uses.items():
            for size in args.batches:
                short, long = (shortest(llm, size, args.context, count, adapters) for count in (8, 8 + MORE_TOKENS))
                found[use][f"decode step of {size}"] = (long - short) / MORE_TOKENS
            prompts = shortest(llm, NUM_PROMPTS, PROMPT_TOKENS, 1, adapters)
            found[use][f"{NUM_PROMPTS} prompts of {PROMPT_TOKENS}"] = prompts
    return found


def shortest(llm: LLM, size: int, context: int, tokens: int, adapters: list[LoRARequest]) -> float:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(10, 10_000, context).tolist() for _ in range(size)]
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, ignore_eos=True, detokenize=False)
    own = [adapters[place % len(adapters)] for place in range(size)] if adapters else None
    turns = []
    for _ in range(3):
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False, lora_request=own)
        turns.append(1e3 * (time.perf_counter() - begin))
    return min(turns[1:])


if __name__ == "__main__":
    main()
