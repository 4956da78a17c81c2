"""A fake executor: runs StepPlans like a worker, with hashes in place of keys and values.

    slot content of position p  =  hash of the sequence's tokens 0 .. p
    next token                  =  a function of that hash, the seed and the sample index (`fake_tokens.py`)

Batching, chunks, prefix hits, forks and preemption must not change any token. A wrongly shared block, a missing copy or
a read of an unwritten slot shows up as wrong content. Every rule of a plan is an assertion.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listlike
from dataclasses import dataclass, field
from itertools import accumulate

from octavo.cache.blocks import NULL_BLOCK, CacheGroup
from octavo.messages import BlockWrite, Candidates, ForkRow, LogprobRow, NewRow, StepPlan, StepResult
from octavo.scheduler.step import num_right
from octavo.worker.runner import DoneStep
from tests.fake_tokens import best_tokens, extend_prefix, next_token, prefix_of_adapter


@dataclass(slots=True, eq=False)
class _Row:
    """What the worker holds for one sequence. prefix_hashes[p]: the hash of tokens 0 .. p, expected in slot p.
    is_ahead: its last draw did not give exactly one token, so the next step may be planned for tokens it lacks.
    adapter: the slot of its adapter and what that held as it entered; None: it has none."""

    seed: int
    sample_index: int
    wants_logprobs: bool
    tables: list[list[int]]
    token_ids: list[int] = field(default_factory=list)
    prefix_hashes: list[int] = field(default_factory=list)
    num_computed: int | None = None  # None: has not run yet
    is_ahead: bool = False
    adapter: tuple[int, int] | None = None

    def append(self, token_id: int) -> None:
        root = prefix_of_adapter(None if self.adapter is None else self.adapter[1])
        before = self.prefix_hashes[-1] if self.prefix_hashes else root
        self.token_ids.append(token_id)
        self.prefix_hashes.append(extend_prefix(before, token_id))

    def cut(self, num_tokens: int) -> None:
        del self.token_ids[num_tokens:], self.prefix_hashes[num_tokens:]

    def next_token(self, num_tokens: int) -> int:
        """The token drawn after its first `num_tokens` tokens."""
        return next_token(self.prefix_hashes[num_tokens - 1], self.seed, self.sample_index)


class FakeExecutor:
    """One worker's rows, tables and slots. run_len: how many tokens a draw gives its row, by default 1. It may be none,
    or several, as if the others were forced; they are always those that would have been drawn."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        groups: Listlike[CacheGroup],
        max_num_seqs: int,
        run_len: Callable[[], int] | None = None,
    ) -> None:
        self._block_size = block_size
        self._groups = tuple(groups)
        self._max_num_seqs = max_num_seqs
        self._run_len = run_len
        self.slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.rows: dict[int, _Row] = {}
        self.adapters: dict[int, int] = {}  # slot -> the key of the adapter in it

    def submit(self, plan: StepPlan) -> DoneStep:
        return DoneStep(self.execute(plan))

    def execute(self, plan: StepPlan) -> StepResult:
        for row in plan.freed_rows:
            assert self.rows.pop(row, None) is not None, f"row {row} was freed but is empty"
        self.adapters |= {load.slot: load.key for load in plan.adapters}
        for new in plan.new_rows:
            self._enter(new)
        self._continue_beams(plan)
        for write in plan.block_writes:
            self._write_table(write)
        for fork in plan.fork_rows:
            self._fork(fork)
        for source, target in plan.copies:
            assert NULL_BLOCK not in (source, target), f"copy {source} -> {target} touches the null block"
            assert source != target, f"block {source} is copied onto itself"
            self.slots[target] = list(self.slots[source])
        outdated = self._outdated(plan)
        self._compute(plan, outdated)
        runs = self._draw(plan, outdated)
        return StepResult(
            plan.step_id,
            [token_id for run in runs for token_id in run],
            [] if all(len(run) == 1 for run in runs) else [0, *accumulate(map(len, runs))],
            self._logprobs(plan, runs),
            self._prompt_logprobs(plan),
            self._candidates(plan),
        )

    def close(self) -> None:
        self.rows.clear()

    def _enter(self, new: NewRow) -> None:
        assert 0 <= new.row < self._max_num_seqs, f"row {new.row} does not exist"
        assert new.row not in self.rows, f"row {new.row} is taken"
        wants_logprobs = new.sampling_params.logprobs is not None
        row = _Row(new.seed, new.sample_index, wants_logprobs, [[] for _ in self._groups])
        row.adapter = None if new.adapter < 0 else (new.adapter, self.adapters[new.adapter])
        for token_id in new.token_ids:
            row.append(token_id)
        self.rows[new.row] = row

    def _write_table(self, write: BlockWrite) -> None:
        row = self.rows[write.row]
        table = row.tables[write.group]
        if row.num_computed is None and not table:
            table.extend([0] * write.start)  # behind the window: never read
        assert write.start <= len(table), f"row {write.row} got blocks from {write.start} on, its table ends before"
        assert all(0 < block_id < len(self.slots) for block_id in write.block_ids), "a block that does not exist"
        table[write.start : write.start + len(write.block_ids)] = write.block_ids

    def _fork(self, fork: ForkRow) -> None:
        assert fork.row not in self.rows, f"row {fork.row} is taken"
        parent = self.rows[fork.parent_row]
        self.rows[fork.row] = _Row(
            parent.seed,
            fork.sample_index,
            parent.wants_logprobs,
            [list(table) for table in parent.tables],
            list(parent.token_ids),
            list(parent.prefix_hashes),
            adapter=parent.adapter,
        )

    def _continue_beams(self, plan: StepPlan) -> None:
        columns = plan.beam_rows, plan.beam_parents, plan.beam_token_ids
        before = {row_id: self.rows[row_id] for row_id in plan.beam_parents}
        for row_id, parent_id in zip(*columns[:2], strict=True):
            parent = before[parent_id]
            assert parent.num_computed == len(parent.token_ids), f"row {parent_id} has tokens that were not computed"
            tables, own = [list(table) for table in parent.tables], (list(parent.token_ids), list(parent.prefix_hashes))
            made = _Row(parent.seed, 0, parent.wants_logprobs, tables, *own, parent.num_computed)
            made.adapter = parent.adapter
            self.rows[row_id] = made
        for row_id, token_id in zip(plan.beam_rows, plan.beam_token_ids, strict=True):
            self.rows[row_id].append(token_id)

    def _outdated(self, plan: StepPlan) -> set[int]:
        """The entries whose rows have got other tokens than planned; they draw nothing. Appends the guesses of all
        entries to their rows for this step."""
        outdated = set()
        for entry, row_id in enumerate(plan.rows):
            row, guesses = self.rows[row_id], plan.spec_token_ids.get(entry, [])
            end = plan.num_computed_tokens[entry] + plan.num_scheduled_tokens[entry]
            if row.is_ahead and plan.num_draws[entry] and end - len(guesses) != len(row.token_ids):
                outdated.add(entry)
            row.is_ahead = False
            for token_id in guesses:
                row.append(token_id)
        return outdated

    def _compute(self, plan: StepPlan, outdated: set[int]) -> None:
        """All writes of a step come before its reads, as they do in each layer."""
        assert len(set(plan.rows)) == len(plan.rows), "a row appears twice in a step"
        shared_with = self._holders(plan, outdated)
        written: set[tuple[int, int]] = set()
        columns = plan.rows, plan.num_computed_tokens, plan.num_scheduled_tokens
        entries = list(enumerate(zip(*columns, strict=True)))
        for entry, (row_id, start, count) in entries:
            row = self.rows[row_id]
            assert count > 0, f"row {row_id} was granted no token"
            if row.adapter is not None:
                slot, key = row.adapter
                assert self.adapters[slot] == key, f"row {row_id} computes with another adapter than it entered with"
            if entry not in outdated:
                assert row.num_computed in (None, start), f"row {row_id} goes on at {start}, not at {row.num_computed}"
                assert start + count <= len(row.token_ids), f"row {row_id} computes tokens that are not known"
            for position in range(start, start + count):
                self._write_slots(row_id, row, position, shared_with, written)
        for entry, (row_id, start, count) in entries:
            row = self.rows[row_id]
            row.num_computed = start + count
            if entry in outdated:
                row.num_computed = min(row.num_computed, len(row.token_ids) - 1)
            else:
                self._read(row_id, start, start + count)
        for fork in plan.fork_rows:
            self.rows[fork.row].num_computed = self.rows[fork.parent_row].num_computed

    def _holders(self, plan: StepPlan, outdated: set[int]) -> dict[int, set[int]]:
        """Block -> rows with computed tokens in it before this step. A row that drew less than the plan counts on holds
        what it would see from the planned place: the rest is given back, and it starts again."""
        planned = {plan.rows[entry]: plan.num_computed_tokens[entry] for entry in outdated}
        holders: dict[int, set[int]] = {}
        for row_id, row in self.rows.items():
            if row.num_computed is None:
                continue
            end = -(-row.num_computed // self._block_size)
            for group, table in zip(self._groups, row.tables, strict=True):
                first = group.first_visible_block(planned.get(row_id, row.num_computed), self._block_size)
                for block_id in table[first:end]:
                    holders.setdefault(block_id, set()).add(row_id)
        return holders

    def _write_slots(
        self, row_id: int, row: _Row, position: int, holders: dict[int, set[int]], written: set[tuple[int, int]]
    ) -> None:
        index, offset = divmod(position, self._block_size)
        for table in row.tables:
            assert index < len(table), f"row {row_id} has no block for position {position}"
            block_id = table[index]
            assert block_id != 0, f"row {row_id} writes position {position} into the null block"
            others = holders.get(block_id, set()) - {row_id}
            assert not others, f"row {row_id} writes into block {block_id}, which rows {others} share"
            assert (block_id, offset) not in written, f"two rows write slot {offset} of block {block_id}"
            written.add((block_id, offset))
            is_known = position < len(row.prefix_hashes)
            self.slots[block_id][offset] = row.prefix_hashes[position] if is_known else None

    def _read(self, row_id: int, start: int, end: int) -> None:
        row = self.rows[row_id]
        for group, table in zip(self._groups, row.tables, strict=True):
            first = 0 if group.window is None else max(0, start - group.window + 1)
            for position in range(first, end):
                index, offset = divmod(position, self._block_size)
                content = self.slots[table[index]][offset]
                assert content == row.prefix_hashes[position], (
                    f"row {row_id} reads position {position} in block {table[index]}: not its own content"
                )

    def _draw(self, plan: StepPlan, outdated: set[int]) -> list[list[int]]:
        forks = [fork.row for fork in plan.fork_rows]
        runs = []
        for entry, (row_id, num_draws) in enumerate(zip(plan.rows + forks, plan.num_draws, strict=True)):
            row, guesses = self.rows[row_id], plan.spec_token_ids.get(entry, [])
            num_tokens = len(row.token_ids) - len(guesses)
            drawn: list[int] = []
            if num_draws and entry not in outdated:
                assert num_draws == 1 + len(guesses), f"row {row_id} draws {num_draws} after {len(guesses)} guesses"
                assert row.num_computed == len(row.token_ids), f"row {row_id} draws before its last token is computed"
                assert entry >= len(plan.rows) or plan.num_logits[entry] == num_draws, (
                    f"row {row_id} draws from nothing"
                )
                drawn = self._run(row, num_tokens, guesses)
            row.cut(num_tokens)
            for token_id in drawn:
                row.append(token_id)
            if num_draws:
                row.is_ahead = len(drawn) != 1
                num_wrong = len(guesses) - num_right(guesses, drawn)
                row.num_computed = min((row.num_computed or 0) - num_wrong, len(row.token_ids) - 1)
            runs.append(drawn)
        return runs

    def _run(self, row: _Row, num_tokens: int, guesses: list[int]) -> list[int]:
        """The tokens drawn for a row: the correctly guessed ones and the next, then forced ones."""
        run = [row.next_token(num_tokens)]
        for place, guess in enumerate(guesses):
            if run[-1] != guess:
                break
            run.append(row.next_token(num_tokens + place + 1))
        if self._run_len is None:
            return run
        run_len = self._run_len()
        row.cut(num_tokens)
        for token_id in run:
            row.append(token_id)
        while len(run) < run_len:
            run.append(row.next_token(len(row.token_ids)))
            row.append(run[-1])
        return run if run_len else []

    def _logprobs(self, plan: StepPlan, runs: list[list[int]]) -> dict[int, list[LogprobRow]]:
        """A token's log-probability is minus its position."""
        rows: dict[int, list[LogprobRow]] = {}
        row_ids = plan.rows + [fork.row for fork in plan.fork_rows]
        for entry, (row_id, run) in enumerate(zip(row_ids, runs, strict=True)):
            row = self.rows[row_id]
            if run and row.wants_logprobs:
                first = len(row.token_ids) - len(run)
                rows[entry] = [LogprobRow([token_id], [-float(first + i)], 1) for i, token_id in enumerate(run)]
        return rows

    def _candidates(self, plan: StepPlan) -> dict[int, Candidates]:
        rows = {entry: self.rows[plan.rows[entry]] for entry in plan.candidates}
        return {entry: best_tokens(row.prefix_hashes[-1], plan.candidates[entry]) for entry, row in rows.items()}

    def _prompt_logprobs(self, plan: StepPlan) -> dict[int, list[LogprobRow]]:
        """A token's log-probability is minus its position."""
        rows = {}
        for entry in plan.prompt_logprobs:
            start, row = plan.num_computed_tokens[entry], self.rows[plan.rows[entry]]
            positions = range(start + 1, start + plan.num_scheduled_tokens[entry] + 1)
            rows[entry] = [LogprobRow([row.token_ids[p]], [-float(p)], 1) for p in positions if p < len(row.token_ids)]
        return rows
