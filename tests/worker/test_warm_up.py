"""The warm-up steps of a server: plans that any worker can run, within its limits, and that leave no row behind."""

from __future__ import annotations

import pytest

from octavo.kernels.device import StepLimits
from octavo.worker.warm_up import warm_up_plans

LIMITS = [
    StepLimits(8192, 1024, 16384, 1000),
    StepLimits(24, 8, 16, 50),
    StepLimits(1, 1, 2, 50),
    StepLimits(600, 5, 9, 9),
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("has_adapters", [False, True])
def test_plans_keep_to_the_limits_and_leave_nobody(limits: StepLimits, has_adapters: bool) -> None:
    in_use: set[int] = set()
    for index, plan in enumerate(warm_up_plans(limits, has_adapters=has_adapters)):
        assert plan.step_id == index
        assert set(plan.freed_rows) <= in_use
        in_use -= set(plan.freed_rows)
        assert not in_use & {new.row for new in plan.new_rows}
        in_use |= {new.row for new in plan.new_rows}
        assert plan.num_tokens <= limits.max_num_tokens
        assert len(plan.rows) <= limits.max_num_seqs
        lengths = {new.row: len(new.token_ids) for new in plan.new_rows}
        for row, start, count in zip(plan.rows, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True):
            assert start + count == lengths[row] <= limits.max_model_len
        assert not plan.block_writes, "the null block takes what is written"
    assert not in_use


def test_the_most_decodes_that_may_run_are_among_them() -> None:
    sizes = [plan.num_tokens for plan in warm_up_plans(LIMITS[0]) if set(plan.num_scheduled_tokens) == {1}]
    assert {1, 2, 3, 4, 256, 1024} <= set(sizes)
    assert max(len(plan.rows) for plan in warm_up_plans(LIMITS[1])) == 8


def test_every_size_comes_with_and_without_an_adapter() -> None:
    sizes: dict[bool, set[tuple[int, ...]]] = {False: set(), True: set()}
    for plan in warm_up_plans(LIMITS[1], has_adapters=True):
        if plan.rows:
            sizes[any(new.adapter >= 0 for new in plan.new_rows)].add(tuple(plan.num_scheduled_tokens))
    assert sizes[True] == sizes[False]
