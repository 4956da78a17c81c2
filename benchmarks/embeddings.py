"""Texts embedded a second at ragged lengths: Octavo in two precisions, and transformers, in turns, on the same threads.

    python benchmarks/embeddings.py --model all-minilm-l6-v2 --num-texts 256 --rounds 3

transformers pools as sentence-transformers does: batches of 32 texts, sorted by length, padded to the longest of each.
Both are given the same token ids' texts, and tokenise them. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo import LLM, PoolingParams
from octavo.config import ModelConfig
from octavo.models.located import tokenizer_source

BATCH_SIZE = 32  # sentence-transformers' own
PARAMS, PEER = PoolingParams(truncate_prompt_tokens=-1), "transformers"
HALVES: dict[str, Any] = {"dtype": "bfloat16", "activation_dtype": "bfloat16"}


def texts_of(count: int, seed: int) -> list[str]:
    """Pieces of Python's own help, from 3 to 160 words, half of them under 30."""
    words = " ".join(topics.values()).split()
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(30), 0.9, count)), 3, 160).astype(int)
    starts = rng.integers(0, len(words) - 160, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def peer(folder: str, max_len: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """transformers with mean pooling and normalisation."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(texts), BATCH_SIZE):
            places = order[start : start + BATCH_SIZE]
            given = [texts[place] for place in places]
            batch = tokenizer(given, padding=True, truncation=True, max_length=max_len, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            found[places] = torch.nn.functional.normalize(pooled).numpy()
        return found

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--num-texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    texts = texts_of(asked.num_texts, seed=0)
    with (
        LLM(asked.model, max_num_batched_tokens=1024) as exact,
        LLM(asked.model, max_num_batched_tokens=1024, **HALVES) as rounded,
    ):
        lens = [len(one.prompt_token_ids) for one in exact.embed(texts, pooling_params=PARAMS, use_tqdm=False)]
        folder = str(tokenizer_source(ModelConfig(model=asked.model)))
        runs = {"float32": embedding(exact), "bfloat16": embedding(rounded), PEER: peer(folder, max(lens))}
        measure(texts, sum(lens), runs, asked.rounds)


def embedding(llm: LLM) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        outputs = llm.embed(list(texts), pooling_params=PARAMS, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)

    return embed


def measure(
    texts: Sequence[str],
    num_tokens: int,
    runs: dict[str, Callable[[Sequence[str]], NDArray[np.float32]]],
    rounds: int,
) -> None:
    print(f"{os.cpu_count()} cores; {len(texts)} texts, {num_tokens:,} tokens")
    wanted = runs[PEER](texts)
    least = {name: float((run(texts) * wanted).sum(1).min()) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        best, ratio = min(times), min(seconds[PEER]) / min(times)
        rates = f"{len(texts) / best:8.1f} texts/s  {num_tokens / best:9,.0f} tokens/s"
        print(f"{name:<13} {rates}  {ratio:.2f} times as fast; least cosine {least[name]:.7f}")


if __name__ == "__main__":
    main()
