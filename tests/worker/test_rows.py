"""Permanent rows: entering, forking, appending, gathering."""

import numpy as np

from octavo.messages import BlockWrite, ForkRow, NewRow, StepPlan
from octavo.sampling_params import SamplingParams
from octavo.worker.rows import RequestStates


def states_with(*prompts: list[int]) -> RequestStates:
    states = RequestStates(max_num_seqs=4, max_model_len=64, block_size=8, num_groups=2)
    for row, prompt in enumerate(prompts):
        states.enter(NewRow(row, prompt, len(prompt), SamplingParams(), seed=0, sample_index=0))
    return states


def test_gather_mixes_chunks_and_decodes() -> None:
    states = states_with([10, 11, 12, 13, 14], [20, 21, 22], [30])
    plan = StepPlan(1, rows=[2, 0, 1], num_computed_tokens=[0, 1, 2], num_scheduled_tokens=[1, 3, 1])
    batch = states.gather(plan)
    assert batch.input_ids.tolist() == [30, 11, 12, 13, 22]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2]
    assert batch.query_start_loc.tolist() == [0, 1, 4, 5]
    assert batch.seq_lens.tolist() == [1, 4, 3]
    assert batch.rows.tolist() == [2, 0, 1]


def test_gather_of_decodes_only_takes_one_token_a_row() -> None:
    states = states_with([10, 11], [20, 21, 22])
    batch = states.gather(StepPlan(1, rows=[1, 0], num_computed_tokens=[2, 1], num_scheduled_tokens=[1, 1]))
    assert batch.input_ids.tolist() == [22, 11]
    assert batch.positions.tolist() == [2, 1]


def test_a_sampled_token_feeds_the_next_step() -> None:
    states = states_with([10, 11], [20])
    states.append(np.array([1, 0]), np.array([1, 2]), np.array([77, 66], np.int32))
    batch = states.gather(StepPlan(2, rows=[0, 1], num_computed_tokens=[2, 1], num_scheduled_tokens=[1, 1]))
    assert batch.input_ids.tolist() == [66, 77]
    assert states.num_tokens.tolist()[:2] == [3, 2]


def test_a_failed_draw_leaves_its_row_alone() -> None:
    states = states_with([10], [20])
    states.append(np.array([0, 1]), np.array([1, 1]), np.array([-1, 5], np.int32))
    assert states.num_tokens.tolist()[:2] == [1, 2]


def test_a_failed_draw_that_was_reserved_leaves_an_id_that_kernels_can_read() -> None:
    """Its sequence may already be in the next step, whose history of tokens then includes the id."""
    states = states_with([10], [20])
    rows, positions = np.array([0, 1]), np.array([1, 1])
    states.reserve(rows, positions)
    states.fill(rows, positions, np.array([-1, 5], np.int32))
    assert states.token_ids[:2, 1].tolist() == [0, 5]


def test_a_fork_copies_tokens_and_tables_and_then_goes_its_own_way() -> None:
    states = states_with([10, 11, 12])
    states.write_blocks(BlockWrite(row=0, group=1, start=0, block_ids=[5, 9]))
    states.fork(ForkRow(row=3, parent_row=0, sample_index=1))
    states.write_blocks(BlockWrite(row=3, group=1, start=1, block_ids=[7]))
    assert states.block_tables[1][0, :3].tolist() == [5, 9, 0]
    assert states.block_tables[1][3, :3].tolist() == [5, 7, 0]
    assert states.token_ids[3, :3].tolist() == [10, 11, 12]
    assert states.num_prompt_tokens[3] == 3
