"""Plans that a server runs before it says that it is ready, so that no request waits for a compiler.

A GPU's kernels are compiled when a step first needs them, which takes 40 s for all of them on a new machine; later
processes find them in a cache. A step's CUDA graph is captured the first or second time its size is seen. These plans
cover every kind of step: short and long chunks, alone and with decodes, and decode batches from 1 to max_num_seqs rows.

The rows hold no request: their block tables hold only the null block, which may be written and is never read.
Copying it onto itself warms up the copies of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from octavo.cache.blocks import NULL_BLOCK
from octavo.kernels.device import StepLimits
from octavo.messages import BlockWrite, NewRow, StepPlan
from octavo.sampling_params import SamplingParams, parameters_that

FIRST_BLOCK = NULL_BLOCK + 1

#: each small size that has its own graph, and the sizes at which kernels change
_NUM_DECODES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: tokens of each chunk, and the number of decodes in the same step
_CHUNKS = (
    ([16], 0),
    ([1, 16], 0),
    ([64], 0),
    ([512], 0),
    ([1024], 0),
    ([512], 1),
    ([16], 15),
    ([512], 15),
    ([512] * 2, 15),
    ([512] * 16, 0),
    ([64] * 8, 120),
)
_PLAIN, _FILTERED = SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.9)
_KEPT = _FILTERED.replace(top_k=20)  # ranks draw it in their own way
_BOTH = _FILTERED.replace(**dict.fromkeys(parameters_that("edits"), 0.5))
_EDITED = _BOTH.replace(**parameters_that("filters"), logprobs=1)


def warm_up_plans(limits: StepLimits, times: int = 2, *, has_adapters: bool = False) -> Iterator[StepPlan]:
    """Plans in the order to run them, each kind `times` times: its graph is captured by the second run. The last plan
    frees all rows. Steps beyond the limits are left out. has_adapters: there are slots for some, so steps come with
    and without them; the first slot is empty, which changes no kernel."""
    ids = count()
    in_use = 0
    for adapter in (-1, 0) if has_adapters else (-1,):
        for lengths, params in _steps(limits):
            for _ in range(times if adapter < 0 or params is _PLAIN else 0):
                yield _plan(next(ids), in_use, lengths, params, adapter)
                in_use = len(lengths)
    yield StepPlan(next(ids), freed_rows=list(range(in_use)))


def every_size(limits: StepLimits, block_size: int, num_groups: int, times: int = 1) -> Iterator[StepPlan]:
    """The same plans, and first a step with as many tokens as there may be: afterwards all buffers have their size.
    Hosts do not write to the null block, so all rows have the first block everywhere."""
    longest = max(1, min(limits.max_model_len - 1, limits.max_num_tokens))
    num_whole, rest = divmod(limits.max_num_tokens, longest)
    lengths = ([longest] * num_whole + [rest] * (rest > 0))[: limits.max_num_seqs]
    plans = (_plan(0, 0, lengths, _PLAIN), *warm_up_plans(limits, times))
    in_use = 0
    for step_id, plan in enumerate(plans):
        writes = [
            BlockWrite(new.row, group, 0, [FIRST_BLOCK] * -(-len(new.token_ids) // block_size))
            for new in plan.new_rows
            for group in range(num_groups)
        ]
        yield replace(plan, step_id=step_id, freed_rows=[*range(in_use)], block_writes=writes)
        in_use = len(plan.rows)


def _steps(limits: StepLimits) -> Iterator[tuple[list[int], SamplingParams]]:
    """The number of tokens each sequence computes in a step (1 for a decode), and the step's sampling parameters."""
    for chunks, num_decodes in _CHUNKS:
        lengths = [min(length, limits.max_model_len - 1) for length in chunks] + [1] * num_decodes
        if sum(lengths) <= limits.max_num_tokens and len(lengths) <= limits.max_num_seqs:
            yield lengths, _PLAIN
    most = min(limits.max_num_seqs, limits.max_num_tokens)
    for num_decodes in sorted({*(size for size in _NUM_DECODES if size < most), most}):
        yield [1] * num_decodes, _PLAIN
    for params in (_FILTERED, _KEPT, _EDITED, _BOTH):
        yield [1], params
        yield [1] * min(8, most), params


def _plan(step_id: int, in_use: int, lengths: list[int], params: SamplingParams, adapter: int = -1) -> StepPlan:
    """A decode is the second token of a sequence of two."""
    rows = list(range(len(lengths)))
    tokens = [[0] * max(2, length) for length in lengths]
    new = [
        NewRow(row, ids, len(ids), params, seed=row, sample_index=0, adapter=adapter)
        for row, ids in zip(rows, tokens, strict=True)
    ]
    return StepPlan(
        step_id,
        freed_rows=list(range(in_use)),
        new_rows=new,
        copies=[(NULL_BLOCK, NULL_BLOCK)],
        rows=rows,
        num_computed_tokens=[len(ids) - length for ids, length in zip(tokens, lengths, strict=True)],
        num_scheduled_tokens=lengths,
        num_logits=[1] * len(rows),
        num_draws=[1] * len(rows),
    )
