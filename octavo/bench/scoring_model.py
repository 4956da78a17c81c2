"""A model that reads texts and gives the probability of every token of the vocabulary after each of theirs.

It has a model and a device but no engine: one sequence, computed whole in one step. An engine reports the best tokens
of a position; to compare two models takes all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from octavo.cache.blocks import NULL_BLOCK
from octavo.engine.options import engine_config
from octavo.kernels.arrays import FloatArray
from octavo.kernels.device import StepBatch
from octavo.kernels.registry import converter, select
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from octavo.text.tokenizer import open_tokenizer
from octavo.worker.held_as import held_as
from octavo.worker.sizes import WorkerSizes
from octavo.worker.task import WorkerTask

_ROWS = 64  # positions whose logits are computed at once: each has a number for every token


class ScoringModel:
    """options: of the engine, about the model and the backend. context: the most tokens of a text."""

    def __init__(self, model: str, context: int, **options: Any) -> None:
        limits = {"max_model_len": context, "max_num_batched_tokens": context, "max_num_seqs": _ROWS}
        task = WorkerTask.of(engine_config(model=model, **limits, **options))
        selection = select(task.backend)
        checkpoint = open_checkpoint(
            task.model, converter(task.backend), draws_on_device=selection.device.draws_weights
        )
        sizes = WorkerSizes.of(checkpoint, task, selection.device)
        decoder = build_model(checkpoint.architecture, checkpoint, sizes.layer_slots, context)
        loaded = selection.device.load(decoder, sizes.layout, sizes.limits, sizes.dtypes.compute)
        is_quantised = checkpoint.architecture.quantization is not None
        self.held_as = held_as(decoder, loaded.parameters) if is_quantised else checkpoint.dtype_label
        self.backend, self.context = selection.device.name, context
        self.vocab_size, self.num_bytes = checkpoint.architecture.vocab_size, checkpoint.num_bytes
        tokenizer = open_tokenizer(task.model, lambda: checkpoint.tokenizer_source)
        assert tokenizer is not None, "skip_tokenizer_init is no option here"
        self.tokenizer = tokenizer
        num_blocks = -(-context // sizes.layout.block_size)
        self._model = loaded.bind(NULL_BLOCK + 1 + num_blocks * len(sizes.groups))
        self._tables = tuple(self._table(group, num_blocks) for group in range(len(sizes.groups)))

    def logprobs(self, token_ids: Sequence[int], first: int = 1) -> Iterator[FloatArray]:
        """Log-probabilities [N, V] of the tokens at positions `first` and later, some positions at a time."""
        assert first < len(token_ids) <= self.context, f"{len(token_ids)} tokens in a context of {self.context}"
        self._model.forward(self._batch(token_ids))
        for begin in range(first - 1, len(token_ids) - 1, _ROWS):
            indices = np.arange(begin, min(begin + _ROWS, len(token_ids) - 1), dtype=np.int32)
            chosen = np.array(token_ids, np.int32)[indices + 1]
            ids, found, _ = self._model.top_logprobs(self._model.logits(indices), chosen, self.vocab_size)
            rows: FloatArray = np.empty((len(indices), self.vocab_size), np.float32)
            np.put_along_axis(rows, np.asarray(ids[:, 1:], np.int64), found[:, 1:], axis=1)
            yield rows

    def _table(self, group: int, num_blocks: int) -> Any:
        """Every row has the same blocks; only the first is used."""
        begin = NULL_BLOCK + 1 + group * num_blocks
        blocks = np.arange(begin, begin + num_blocks, dtype=np.int32)
        return np.ascontiguousarray(np.broadcast_to(np.append(blocks, np.int32(NULL_BLOCK)), (_ROWS, num_blocks + 1)))

    def _batch(self, token_ids: Sequence[int]) -> StepBatch:
        length = len(token_ids)
        return StepBatch(
            input_ids=np.array(token_ids, np.int32),
            positions=np.arange(length, dtype=np.int32),
            query_start_loc=np.array([0, length], np.int32),
            seq_lens=np.array([length], np.int32),
            rows=np.zeros(1, np.int32),
            block_tables=self._tables,
        )
