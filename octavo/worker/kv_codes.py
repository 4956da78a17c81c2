"""The scales of an 8-bit KV cache before the first request: the checkpoint's, or calibrated, or one.

Calibration runs pseudorandom tokens, the same at every start, so that no answer depends on who asked first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.errors import ConfigError
from octavo.kernels.device import StepBatch
from octavo.kernels.kv_layout import LARGEST_CODE
from octavo.models.decoder import Decoder
from octavo.worker.sizes import WorkerSizes
from octavo.worker.task import WorkerTask

#: instead of a source: they are to be calibrated
TO_CALIBRATE = "scales to be calibrated"
_MOST_TOKENS = 512


def source_of_scales(task: WorkerTask, sizes: WorkerSizes, model: Decoder) -> str:
    """Where they come from, for people; empty if there are none. Raises ConfigError."""
    dtype, is_calibrated = sizes.layout.dtype, task.cache.calculate_kv_scales
    if dtype not in LARGEST_CODE:
        if is_calibrated:
            raise ConfigError(
                f"calculate_kv_scales is set, but KV blocks hold {dtype}, which has no scales: set "
                "kv_cache_dtype='fp8' or 'int8', or leave it out"
            )
        return ""
    has_scales = [layer.attention.layer.scales is not None for layer in model.layers]
    if all(has_scales):
        return "scales of the checkpoint"
    if is_calibrated:
        return TO_CALIBRATE
    if dtype == "int8":
        raise ConfigError(
            "kv_cache_dtype is 'int8', and the checkpoint has no k_scale and v_scale for every layer: set "
            "calculate_kv_scales, or kv_cache_dtype='fp8', which can do without"
        )
    return "scales of the checkpoint where it has them, else 1" if any(has_scales) else "scales of 1"


def calibrate(model: Any, sizes: WorkerSizes) -> str:
    """model: bound to its KV pool. Returns where its scales come from, for people."""
    batch = _calibration_batch(sizes)
    model.calibrate(batch)
    return f"scales calibrated on {len(batch.input_ids)} tokens"


def _calibration_batch(sizes: WorkerSizes) -> StepBatch:
    """A step of one sequence, in the first blocks of the pool, which it is the first to use."""
    layout, limits, num_groups = sizes.layout, sizes.limits, len(sizes.groups)
    num_blocks = (layout.num_blocks - 1) // num_groups
    room = min(limits.max_num_tokens, limits.max_model_len, num_blocks * layout.block_size)
    num_tokens = min(_MOST_TOKENS, room)
    blocks = np.arange(1, 1 + num_groups * num_blocks, dtype=np.int32).reshape(num_groups, 1, num_blocks)
    return StepBatch(
        input_ids=np.random.default_rng(0).integers(0, limits.vocab_size, num_tokens).astype(np.int32),
        positions=np.arange(num_tokens, dtype=np.int32),
        query_start_loc=np.array([0, num_tokens], np.int32),
        seq_lens=np.array([num_tokens], np.int32),
        rows=np.zeros(1, np.int32),
        block_tables=tuple(blocks),
    )
