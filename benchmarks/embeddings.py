"""Texts embedded a second at ragged lengths: Octavo and transformers, in turns, on the same threads.

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

import numpy as np
from numpy.typing import NDArray

from octavo import LLM, PoolingParams
from octavo.config import ModelConfig
from octavo.models.loader import tokenizer_source

BATCH_SIZE = 32  # sentence-transformers' own


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
    llm = LLM(asked.model, max_num_batched_tokens=1024)
    params = PoolingParams(truncate_prompt_tokens=-1)

    def ours(given: Sequence[str]) -> NDArray[np.float32]:
        outputs = llm.embed(list(given), pooling_params=params, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)

    lens = [len(one.prompt_token_ids) for one in llm.embed(texts, pooling_params=params, use_tqdm=False)]
    num_tokens = sum(lens)
    folder = str(tokenizer_source(ModelConfig(model=asked.model)))
    theirs = peer(folder, max(lens))
    cosines = (ours(texts) * theirs(texts)).sum(1)
    print(f"{os.cpu_count()} cores; {len(texts)} texts, {num_tokens:,} tokens; least cosine {cosines.min():.7f}")
    best: dict[str, float] = {}
    for _ in range(asked.rounds):
        for name, run in (("octavo", ours), ("transformers", theirs)):
            begin = time.perf_counter()
            run(texts)
            best[name] = min(best.get(name, 1e9), time.perf_counter() - begin)
    for name, seconds in best.items():
        print(f"{name:<13} {len(texts) / seconds:8.1f} texts/s  {num_tokens / seconds:9,.0f} tokens/s")
    print(f"{best['transformers'] / best['octavo']:.2f} times as fast")
    llm.close()


if __name__ == "__main__":
    main()
