"""llama.cpp on the shapes of record.py, through llama-cpp-python: the peer's side of a paired measurement.

    python benchmarks/peer_llama_cpp.py MODEL.gguf [CELL ...]     prints one JSON object: cell -> tokens per second

llama-cpp-python is not a dependency of Octavo: install it in a separate environment. Tokens are drawn at random
instead of sampled, which costs llama.cpp nothing; batches go through its own batched decode.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Iterable

import llama_cpp

RAGGED_LENS = (16, 24, 32, 48, 64, 64, 80, 96, 96, 112, 128, 144, 160, 192, 224, 256)
BATCH = 2048
#: what record.py measures: prompt lengths, and new tokens for each
CELLS = {
    "one stream": ([16], 256),
    "prefill of 512": ([512] * 4, 1),
    "16 at once": (list(RAGGED_LENS), 128),
    "64 at once": (list(RAGGED_LENS) * 4, 128),
}
#: (token, position, sequence, whether its logits are wanted)
Item = tuple[int, int, int, bool]


class Engine:
    """One context over a loaded model; batches are decoded whole."""

    def __init__(self, model: object, num_slots: int, num_seqs: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = num_slots, BATCH, 512, num_seqs
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def decode(self, items: Iterable[Item]) -> None:
        batch, waiting = self._batch, list(items)
        for start in range(0, len(waiting), BATCH):
            part = waiting[start : start + BATCH]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, is_last) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, is_last
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            code = llama_cpp.llama_decode(self._context, batch)
            assert code == 0, f"llama_decode returned {code}"

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


def measure(model: object, prompt_lens: list[int], num_new: int) -> float:
    """Seconds to prefill all prompts and generate num_new tokens for each."""
    rng = random.Random(0)
    longest = -(-(max(prompt_lens) + num_new) // 256) * 256  # each sequence has a stream of its own, all equally long
    engine = Engine(model, longest * len(prompt_lens), len(prompt_lens))
    begin = time.perf_counter()
    engine.decode(
        (rng.randrange(1000, 40000), position, sequence, position == length - 1)
        for sequence, length in enumerate(prompt_lens)
        for position in range(length)
    )
    for step in range(num_new - 1):
        engine.decode((rng.randrange(1000, 40000), length + step, s, True) for s, length in enumerate(prompt_lens))
    seconds = time.perf_counter() - begin
    engine.close()
    return seconds


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def be_quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def main() -> None:
    llama_cpp.llama_log_set(be_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
    measure(model, [64], 8)  # warm
    rates = {
        cell: (sum(prompt_lens) if num_new == 1 else len(prompt_lens) * num_new) / measure(model, prompt_lens, num_new)
        for cell, (prompt_lens, num_new) in CELLS.items()
        if cell in (sys.argv[2:] or CELLS)
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
