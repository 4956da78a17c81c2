"""The fake executor catches each kind of wrong plan."""

import pytest

from octavo.cache.blocks import make_groups
from octavo.messages import BlockWrite, ForkRow, NewRow, StepPlan
from octavo.sampling_params import SamplingParams
from tests.fake_executor import FakeExecutor
from tests.fake_tokens import generate_alone

PROMPT = [1, 2, 3, 4, 5, 6]


def executor_of():
    return FakeExecutor(num_blocks=10, block_size=4, groups=make_groups([None]), max_num_seqs=4)


def enter(row, token_ids=PROMPT):
    return NewRow(row, list(token_ids), len(token_ids), SamplingParams(), 0, 0)


def prefill(**changes):
    """Six prompt tokens of row 0 in blocks 1 and 2."""
    plan = {
        "step_id": 1,
        "new_rows": [enter(0)],
        "block_writes": [BlockWrite(0, 0, 0, [1, 2])],
        "rows": [0],
        "num_computed_tokens": [0],
        "num_scheduled_tokens": [6],
        "num_logits": [1],
        "num_draws": [1],
    }
    return StepPlan(**{**plan, **changes})


def decode(*rows, position=6, **changes):
    plan = {
        "step_id": 2,
        "rows": list(rows),
        "num_computed_tokens": [position] * len(rows),
        "num_scheduled_tokens": [1] * len(rows),
        "num_logits": [1] * len(rows),
        "num_draws": [1] * len(rows),
    }
    return StepPlan(**{**plan, **changes})


def test_right_plans_draw_what_a_lone_sequence_draws():
    executor = executor_of()
    drawn = executor.execute(prefill()).sampled_token_ids + executor.execute(decode(0)).sampled_token_ids
    assert drawn == generate_alone(PROMPT, 2, seed=0, sample_index=0)


def test_a_fork_draws_its_own_token():
    executor = executor_of()
    plan = prefill(fork_rows=[ForkRow(1, 0, 1)], num_draws=[1, 1])
    drawn = executor.execute(plan).sampled_token_ids
    assert drawn == [generate_alone(PROMPT, 1, 0, 0)[0], generate_alone(PROMPT, 1, 0, 1)[0]]


def test_a_missing_copy_is_caught():
    executor = executor_of()
    executor.execute(prefill(fork_rows=[ForkRow(1, 0, 1)], num_draws=[1, 0]))
    with pytest.raises(AssertionError, match="share"):
        executor.execute(decode(0))


def test_a_copy_makes_it_right():
    executor = executor_of()
    executor.execute(prefill(fork_rows=[ForkRow(1, 0, 1)], num_draws=[1, 1]))
    executor.execute(decode(0, 1, block_writes=[BlockWrite(0, 0, 1, [3])], copies=[(2, 3)]))


def test_a_table_entry_without_its_copy_is_caught():
    executor = executor_of()
    executor.execute(prefill(fork_rows=[ForkRow(1, 0, 1)], num_draws=[1, 0]))
    with pytest.raises(AssertionError, match="not its own content"):
        executor.execute(decode(0, block_writes=[BlockWrite(0, 0, 1, [3])]))


def test_a_wrong_share_is_caught():
    executor = executor_of()
    executor.execute(prefill())
    stranger = [9, 9, 9, 9, 5, 6]
    plan = prefill(
        new_rows=[enter(1, stranger)],
        block_writes=[BlockWrite(1, 0, 0, [1, 3])],
        rows=[1],
        num_computed_tokens=[4],
        num_scheduled_tokens=[2],
    )
    with pytest.raises(AssertionError, match="not its own content"):
        executor.execute(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_rows": [enter(7)]}, "does not exist"),
        ({"new_rows": [enter(0), enter(0)]}, "is taken"),
        ({"freed_rows": [2]}, "was freed but is empty"),
        ({"block_writes": [BlockWrite(0, 0, 0, [1])]}, "no block for position 4"),
        ({"block_writes": [BlockWrite(0, 0, 0, [1, 0])]}, "does not exist"),
        ({"block_writes": [BlockWrite(0, 0, 0, [1, 1])]}, "two rows write|not its own"),
        ({"copies": [(0, 1)]}, "null block"),
        ({"copies": [(1, 1)]}, "onto itself"),
        ({"num_scheduled_tokens": [7]}, "not known"),
        ({"num_scheduled_tokens": [5]}, "before its last token"),
        ({"num_scheduled_tokens": [0]}, "no token"),
        ({"num_logits": [0]}, "draws from nothing"),
    ],
)
def test_broken_plans_are_caught(changes, message):
    with pytest.raises(AssertionError, match=message):
        executor_of().execute(prefill(**changes))


def test_a_gap_in_the_work_is_caught():
    executor = executor_of()
    executor.execute(prefill())
    with pytest.raises(AssertionError, match="goes on at 5"):
        executor.execute(decode(0, position=5))
