"""What samples and beams of one prompt share: blocks held, and keys and values read.

Memory is counted with the engine's scheduler and block tables, without a model: each step draws a token for every
sequence, so a run takes seconds. Beams choose among made-up candidates (`MadeUpCandidates`). The saving is that of the
PagedAttention paper (Kwon et al., SOSP 2023, section 6.3):

    1 - blocks held / blocks that as many separate requests would hold, both averaged over all steps

`sharing_time.py` measures the time of a step.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from octavo.bench.workloads import ALPACA, SHAREGPT, Lengths, Work
from octavo.cache.blocks import make_groups
from octavo.cache.kv_cache import KVCache
from octavo.cache.sharing import sharing_of
from octavo.config import SchedulerConfig
from octavo.messages import Candidates, StepResult
from octavo.observe.event_log import EventLog
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler

DATASETS: dict[str, Lengths] = {"ShareGPT": SHAREGPT, "Alpaca": ALPACA}
#: the memory saving in % that the paper's text states for OPT-13B (section 6.3, arXiv 2309.06180): a range over these
#: numbers of samples, or of beams
PAPER_COUNTS = (2, 4, 6)
PAPER: dict[str, tuple[float, float]] = {"ShareGPT": (16.2, 30.5), "Alpaca": (6.1, 9.8)}
PAPER_OF_BEAMS: dict[str, tuple[float, float]] = {"ShareGPT": (44.3, 66.3), "Alpaca": (37.6, 55.2)}
NUM_AT_ONCE = 16  # requests, whatever n is, so that all n run the same steps
_STEP_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Saving:
    """Sums over all steps of a run. n: samples, or beams. Unshared: counted once for each sequence."""

    dataset: str
    is_search: bool
    n: int
    num_steps: int
    num_blocks: int
    num_unshared_blocks: int
    num_slots_read: int
    num_slots_read_unshared: int

    @property
    def memory_saved(self) -> float:
        return 1 - self.num_blocks / self.num_unshared_blocks

    @property
    def reads_saved(self) -> float:
        return 1 - self.num_slots_read / self.num_slots_read_unshared

    @property
    def paper(self) -> tuple[float, float] | None:
        """The range of the paper's memory savings in %, if this number of samples or beams is in it."""
        return (PAPER_OF_BEAMS if self.is_search else PAPER)[self.dataset] if self.n in PAPER_COUNTS else None

    @property
    def name(self) -> str:
        return f"{self.n} {'beam' if self.is_search else 'sample'}{'s' * (self.n > 1)}"

    def record(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "n": self.n,
            "beams": self.is_search,
            "steps": self.num_steps,
            "blocks_held": self.num_blocks / self.num_steps,
            "blocks_held_unshared": self.num_unshared_blocks / self.num_steps,
            "memory_saved": self.memory_saved,
            "memory_saved_paper": None if self.paper is None else [percent / 100 for percent in self.paper],
            "kv_slots_read": self.num_slots_read / self.num_steps,
            "kv_slots_read_unshared": self.num_slots_read_unshared / self.num_steps,
            "reads_saved": self.reads_saved,
        }


class MadeUpCandidates:
    """A beam's best next tokens, as a language model might rate them: the probability of the token of rank r falls as
    1 / r^s among RANKS tokens, and s is drawn anew for each beam and step, so that some steps are sure and others are
    not."""

    RANKS = 1000
    EXPONENTS = (0.8, 3.0)

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._logs = [math.log(rank) for rank in range(1, self.RANKS + 1)]

    def draw(self, num: int) -> Candidates:
        exponent = round(self._rng.uniform(*self.EXPONENTS), 2)
        total = self._log_sums(exponent)
        return list(range(num)), [-exponent * log - total for log in self._logs[:num]]

    @lru_cache(maxsize=256)  # noqa: B019 (one object a run)
    def _log_sums(self, exponent: float) -> float:
        return math.log(sum(math.exp(-exponent * log) for log in self._logs))


def count_saving(dataset: str, workload: Sequence[Work], n: int, block_size: int, *, is_search: bool = False) -> Saving:
    """Run a workload, with n samples or beams of each prompt, through the scheduler and its block tables."""
    longest = max(len(work.prompt_token_ids) + work.output_len for work in workload)
    num_seqs = NUM_AT_ONCE * n
    events = EventLog(0)
    cache = KVCache(
        num_blocks=num_seqs * (-(-longest // block_size) + 1) + 1,
        block_size=block_size,
        groups=make_groups([None]),
        enable_prefix_caching=False,
        events=events,
        clock=time.monotonic,
    )
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=num_seqs),
        cache,
        max_model_len=longest,
        max_num_batched_tokens=_STEP_TOKENS + num_seqs,
        events=events,
    )
    for index, work in enumerate(workload):
        scheduler.add_request(_request(f"{index}", work, n, is_search))
    steps = list(_run(scheduler, cache))
    return Saving(dataset, is_search, n, len(steps), *(sum(column) for column in zip(*steps, strict=True)))


def _request(name: str, work: Work, n: int, is_search: bool) -> Request:
    params = SamplingParams(n=n, max_tokens=work.output_len, ignore_eos=True, use_beam_search=is_search)
    return Request(name, list(work.prompt_token_ids), params, 0, 0.0, work.output_len)


def _run(scheduler: Scheduler, cache: KVCache) -> Iterator[tuple[int, int, int, int]]:
    """For each step: blocks held, the same unshared, slots read by a decode step, the same unshared."""
    made_up = MadeUpCandidates()
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        now = sharing_of(cache, scheduler.sequences)
        yield now.num_blocks, now.num_unshared_blocks, now.num_slots_read, now.num_slots_read_unshared
        candidates = {entry: made_up.draw(num) for entry, num in plan.candidates.items()}
        tokens = [0] * sum(plan.num_draws)
        scheduler.update(plan, StepResult(plan.step_id, tokens, _offsets(plan.num_draws), candidates=candidates))


def _offsets(num_draws: Sequence[int]) -> list[int]:
    """No token where a step draws none."""
    ends = [0]
    for number in num_draws:
        ends.append(ends[-1] + number)
    return ends


def table(savings: Sequence[Saving]) -> list[list[str]]:
    """A row of headings, then a row for each run."""
    rows = [["lengths", "of a prompt", "blocks held", "unshared", "memory saved", "the paper's", "KV reads saved"]]
    for one in savings:
        held, unshared = one.num_blocks / one.num_steps, one.num_unshared_blocks / one.num_steps
        paper = "" if one.paper is None else "{:.1f} to {:.1f} %".format(*one.paper)
        counts = [f"{held:,.0f}", f"{unshared:,.0f}", f"{one.memory_saved:.1%}".replace("%", " %"), paper]
        rows.append([one.dataset, one.name, *counts, f"{one.reads_saved:.1%}".replace("%", " %")])
    return rows
