"""Flags for a wished number of requests of a length: the first tensor-parallel size and change of options that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError
from octavo.kernels.ledger import size
from octavo.worker.plan import RUNS_ON_SEVERAL, Change, MemoryPlan, Planner, smallest_changes, with_option
from octavo.worker.task import WorkerTask

_HOST_SHARE = 0.9  # of free memory


@dataclass(frozen=True, slots=True)
class Wish:
    """context: None stands for the model's own."""

    concurrency: int
    context: int | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """changes: the options to set, on num_ranks GPUs. most: requests that fit with them, or at best without them."""

    works: bool
    wish: Wish
    changes: tuple[Change, ...]
    num_ranks: int
    most: int
    needed: int  # bytes of KV blocks

    @property
    def text(self) -> str:
        length = "" if self.wish.context is None else f" of {self.wish.context:,} tokens"
        what = f"{self.wish.concurrency:,} requests{length} at once need {size(self.needed)} of KV blocks"
        where = "" if self.num_ranks == 1 else f" on each of {self.num_ranks} GPUs"
        if self.works:
            later = " (this version runs a model on one)" if self.num_ranks > 1 and not RUNS_ON_SEVERAL else ""
            return f"{what}{where}{later}; flags that fit:\n  {' '.join(self.flags)}"
        return f"{what}{where}, which does not fit; at most {self.most:,} do: take more GPUs, or larger ones"

    @property
    def flags(self) -> list[str]:
        ranks = [f"--tensor-parallel-size {self.num_ranks}"] if self.num_ranks > 1 else []
        return [*(f"--{change.option.replace('_', '-')} {change.value}" for change in self.changes), *ranks]

    def facts(self) -> dict[str, Any]:
        options = {change.option: change.value for change in self.changes}
        ranks = {"tensor_parallel_size": self.num_ranks} if self.num_ranks > 1 else {}
        return {"works": self.works, "options": options | ranks if self.works else {}, "most": self.most}


def suggest(planner: Planner, task: WorkerTask, wish: Wish, sizes: Sequence[int]) -> Suggestion:
    """The fewest GPUs, and on them the fewest changes. Raises ConfigError for a context beyond the model's."""
    base = [Change("max_num_seqs", wish.concurrency)]
    if wish.context is not None:
        base.insert(0, Change("max_model_len", wish.context))
    wished = task
    for change in base:
        wished = with_option(wished, change.option, change.value)
    best: Suggestion | None = None
    for num_ranks in sizes:
        plan = planner.plan(wished, num_ranks)
        length = wish.context or plan.sizes.limits.max_model_len
        needed = (wish.concurrency * plan.sizes.blocks_of(length) + 1) * plan.sizes.layout.block_bytes

        def is_good(plan: MemoryPlan, length: int = length) -> bool:
            return plan.problem is None and plan.num_requests(length) >= wish.concurrency

        if is_good(plan):
            return Suggestion(True, wish, tuple(base), num_ranks, plan.num_requests(length), needed)
        for change in _changes(planner, wished, is_good, num_ranks, needed):
            return Suggestion(True, wish, (*base, change), num_ranks, wish.concurrency, needed)
        most = 0 if plan.problem else plan.num_requests(length)
        best = Suggestion(False, wish, tuple(base), num_ranks, most, needed)
    if best is None:
        raise ConfigError("no tensor-parallel size was given")
    return best


def _changes(planner: Planner, task: WorkerTask, is_good: Any, num_ranks: int, needed: int) -> list[Change]:
    """On a host the cache's size is an option of its own; on a GPU it is what is left."""
    if planner.host_memory is None:
        return [*smallest_changes(planner, task, is_good, num_ranks)]
    plan = planner.plan(task)
    fits = plan.ledger.total + needed <= planner.host_memory * _HOST_SHARE
    return [Change("kv_cache_memory_bytes", needed)] if fits else []
