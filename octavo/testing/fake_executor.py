"""A fake executor: consumes StepPlans as a worker would, with hashes in place of keys and values.

    slot content of position p  =  hash of the sequence's tokens 0 .. p
    next token                  =  a function of that hash, the seed and the sample index

So a token depends on everything before it, and on nothing else: batching, chunks, prefix hits, forks and
preemption must not change a single one. A block shared wrongly, a copy forgotten, a slot read before it is
written shows up as content that is not the reader's own. Every rule of a plan is an assertion.
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike
from dataclasses import dataclass, field

from octavo.cache.block import NULL_BLOCK
from octavo.cache.groups import CacheGroup
from octavo.messages import BlockWrite, DoneStep, ForkRow, LogprobRow, NewRow, StepPlan, StepResult

VOCAB_SIZE = 1000
_MASK = (1 << 64) - 1
_EMPTY_PREFIX = 0x9E3779B97F4A7C15


def extend_prefix(prefix_hash: int, token_id: int) -> int:
    mixed = ((prefix_hash ^ token_id) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 29)


def next_token(prefix_hash: int, seed: int, sample_index: int) -> int:
    return extend_prefix(extend_prefix(prefix_hash, seed & _MASK), sample_index) % VOCAB_SIZE


def generate_alone(prompt: Listlike[int], num_tokens: int, seed: int, sample_index: int) -> list[int]:
    """What a sequence gets without any batching: the truth every plan is measured by."""
    prefix_hash = _EMPTY_PREFIX
    for token_id in prompt:
        prefix_hash = extend_prefix(prefix_hash, token_id)
    drawn = []
    for _ in range(num_tokens):
        drawn.append(next_token(prefix_hash, seed, sample_index))
        prefix_hash = extend_prefix(prefix_hash, drawn[-1])
    return drawn


@dataclass(slots=True, eq=False)
class _Row:
    """What the worker holds of one sequence. prefix_hashes[p]: of tokens 0 .. p, the content it expects."""

    seed: int
    sample_index: int
    tables: list[list[int]]
    token_ids: list[int] = field(default_factory=list)
    prefix_hashes: list[int] = field(default_factory=list)
    num_computed: int | None = None  # None: has not run yet

    def append(self, token_id: int) -> None:
        before = self.prefix_hashes[-1] if self.prefix_hashes else _EMPTY_PREFIX
        self.token_ids.append(token_id)
        self.prefix_hashes.append(extend_prefix(before, token_id))


class FakeExecutor:
    """One worker's rows, tables and slots."""

    def __init__(self, *, num_blocks: int, block_size: int, groups: Listlike[CacheGroup], max_num_seqs: int) -> None:
        self._block_size = block_size
        self._groups = tuple(groups)
        self._max_num_seqs = max_num_seqs
        self._slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.rows: dict[int, _Row] = {}

    def begin(self, plan: StepPlan) -> DoneStep:
        return DoneStep(self.execute(plan))

    def execute(self, plan: StepPlan) -> StepResult:
        for row in plan.freed_rows:
            assert self.rows.pop(row, None) is not None, f"row {row} was freed but nobody is in it"
        for new in plan.new_rows:
            self._enter(new)
        for write in plan.block_writes:
            self._write_table(write)
        for fork in plan.fork_rows:
            self._fork(fork)
        for source, target in plan.copies:
            assert NULL_BLOCK not in (source, target), f"copy {source} -> {target} touches the null block"
            assert source != target, f"block {source} is copied onto itself"
            self._slots[target] = list(self._slots[source])
        self._compute(plan)
        return StepResult(plan.step_id, self._sample(plan), prompt_logprobs=self._prompt_logprobs(plan))

    def close(self) -> None:
        self.rows.clear()

    def _enter(self, new: NewRow) -> None:
        assert 0 <= new.row < self._max_num_seqs, f"row {new.row} does not exist"
        assert new.row not in self.rows, f"row {new.row} is taken"
        row = _Row(new.seed, new.sample_index, [[] for _ in self._groups])
        for token_id in new.token_ids:
            row.append(token_id)
        self.rows[new.row] = row

    def _write_table(self, write: BlockWrite) -> None:
        row = self.rows[write.row]
        table = row.tables[write.group]
        if row.num_computed is None and not table:
            table.extend([0] * write.start)  # behind the window: never read
        assert write.start <= len(table), f"row {write.row} got blocks from {write.start} on, its table ends before"
        assert all(0 < block_id < len(self._slots) for block_id in write.block_ids), "a block that does not exist"
        table[write.start : write.start + len(write.block_ids)] = write.block_ids

    def _fork(self, fork: ForkRow) -> None:
        assert fork.row not in self.rows, f"row {fork.row} is taken"
        parent = self.rows[fork.parent_row]
        self.rows[fork.row] = _Row(
            parent.seed,
            fork.sample_index,
            [list(table) for table in parent.tables],
            list(parent.token_ids),
            list(parent.prefix_hashes),
        )

    def _compute(self, plan: StepPlan) -> None:
        """All writes of a step come before its reads, as they do in each layer."""
        assert len(set(plan.rows)) == len(plan.rows), "a row appears twice in a step"
        shared_with = self._holders()
        written: set[tuple[int, int]] = set()
        entries = list(zip(plan.rows, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True))
        for row_id, start, count in entries:
            row = self.rows[row_id]
            assert count > 0, f"row {row_id} was granted no token"
            assert row.num_computed in (None, start), f"row {row_id} goes on at {start}, not at {row.num_computed}"
            assert start + count <= len(row.token_ids), f"row {row_id} computes tokens that are not known"
            for position in range(start, start + count):
                self._write_slots(row_id, row, position, shared_with, written)
        for row_id, start, count in entries:
            self.rows[row_id].num_computed = start + count
            self._read(row_id, start, start + count)
        for fork in plan.fork_rows:
            self.rows[fork.row].num_computed = self.rows[fork.parent_row].num_computed

    def _holders(self) -> dict[int, set[int]]:
        """Block -> rows that computed something in it before this step."""
        holders: dict[int, set[int]] = {}
        for row_id, row in self.rows.items():
            if row.num_computed is None:
                continue
            end = -(-row.num_computed // self._block_size)
            for group, table in zip(self._groups, row.tables, strict=True):
                first = group.first_visible_block(row.num_computed, self._block_size)
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
            self._slots[block_id][offset] = row.prefix_hashes[position]

    def _read(self, row_id: int, start: int, end: int) -> None:
        row = self.rows[row_id]
        for group, table in zip(self._groups, row.tables, strict=True):
            first = 0 if group.window is None else max(0, start - group.window + 1)
            for position in range(first, end):
                index, offset = divmod(position, self._block_size)
                content = self._slots[table[index]][offset]
                assert content == row.prefix_hashes[position], (
                    f"row {row_id} reads position {position} in block {table[index]}: not its own content"
                )

    def _sample(self, plan: StepPlan) -> list[int]:
        parents = {fork.row: fork.parent_row for fork in plan.fork_rows}
        assert len(set(plan.sample_rows)) == len(plan.sample_rows), "a row draws twice in a step"
        drawn = []
        for row_id, source in zip(plan.sample_rows, plan.sample_sources, strict=True):
            source_row = plan.rows[source]
            assert source_row == parents.get(row_id, row_id), f"row {row_id} draws from row {source_row}"
            row = self.rows[row_id]
            assert row.num_computed == len(row.token_ids), f"row {row_id} draws before its last token is computed"
            drawn.append(next_token(row.prefix_hashes[-1], row.seed, row.sample_index))
        for row_id, token_id in zip(plan.sample_rows, drawn, strict=True):
            self.rows[row_id].append(token_id)
        return drawn

    def _prompt_logprobs(self, plan: StepPlan) -> dict[int, list[LogprobRow]]:
        """The log-probability of a token stands for its place: minus its position."""
        rows = {}
        for entry in plan.prompt_logprobs:
            start, row = plan.num_computed_tokens[entry], self.rows[plan.rows[entry]]
            positions = range(start + 1, start + plan.num_scheduled_tokens[entry] + 1)
            rows[entry] = [LogprobRow([row.token_ids[p]], [-float(p)], 1) for p in positions if p < len(row.token_ids)]
        return rows
