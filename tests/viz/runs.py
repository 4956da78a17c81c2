"""Random runs of the simulator, with everything that can happen to a block: what the pictures' tests replay."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from octavo.cache.blocks import make_groups
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.observe import events
from octavo.observe.events import EngineStarted, Event
from octavo.request import SequenceState
from tests.fake_tokens import VOCAB_SIZE
from tests.simulate import Simulator, make_request

WINDOWS: list[tuple[int | None, ...]] = [(None,), (8,), (40, None), (5, 5, 33, 33, None, None)]
COMMON_PREFIX = [(i * 37) % VOCAB_SIZE for i in range(80)]
BLOCK_SIZE, MAX_MODEL_LEN = 8, 300


class RandomRun:
    """One engine under random load: samples, beams, preemptions, prefix hits, windows, aborts, failed steps, resets of
    the prefix cache. has_runs: a step brings some sequences several tokens, or none. `steps` yields when a step is
    planned and its events are written."""

    def __init__(self, seed: int) -> None:
        self._dice = dice = random.Random(seed)
        windows = WINDOWS[seed % len(WINDOWS)]
        self.has_runs = seed % 3 == 2
        num_groups = len(make_groups(windows))
        num_blocks = 1 + dice.choice([10, 16, 30]) * num_groups
        max_num_seqs, budget = dice.randint(2, 8), dice.choice([16, 64, 256])
        self.simulator = Simulator(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            windows=windows,
            config=SchedulerConfig(
                max_num_batched_tokens=budget,
                max_num_seqs=max_num_seqs,
                scheduling_policy=dice.choice(["fcfs", "priority"]),
                schedule_conservativeness=dice.choice([0, 0, 1]),
            ),
            max_model_len=MAX_MODEL_LEN,
            enable_prefix_caching=seed % 5 != 4,
            run_len=(lambda: dice.choice([0, 1, 1, 3])) if self.has_runs else None,
        )
        self.started = EngineStarted(
            time=0.0,
            num_blocks=num_blocks - 1,
            block_size=BLOCK_SIZE,
            block_bytes=1024,
            num_groups=num_groups,
            max_model_len=MAX_MODEL_LEN,
            windows=tuple(group.window for group in make_groups(windows)),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
        )
        self._names: list[str] = []

    def steps(self, num_steps: int) -> Iterator[None]:
        """Begin, and go on for so many steps; then until all requests have ended."""
        simulator, dice = self.simulator, self._dice
        simulator.events.start(self.started)
        while simulator.num_steps < num_steps or simulator.scheduler.has_unfinished:
            assert simulator.num_steps < num_steps + 2000
            while simulator.num_steps < num_steps and dice.random() < 0.3:
                self._arrive()
            plan = simulator.plan()
            yield
            what = dice.random()
            if what < 0.02 and plan.rows and not plan.candidates and not plan.beam_rows:
                self._fail(plan)
                continue
            simulator.carry_out(plan)
            if what > 0.97 and self._names:
                simulator.scheduler.abort(dice.choice(self._names))
            elif what > 0.95:
                simulator.cache.forget()
            elif what > 0.9 and simulator.scheduler.has_unfinished:
                self._end_one()

    def _arrive(self) -> None:
        dice, name = self._dice, f"r{len(self._names)}"
        variant, kind = dice.randint(0, 3), dice.random()
        own = [(variant * 101 + i * 7) % VOCAB_SIZE for i in range(dice.randint(1, 40))]
        params: dict[str, int | bool] = {"n": dice.choice([1, 1, 2, 4])}
        if kind < 0.2:
            params = {"n": 2, "use_beam_search": True}
        prompt = COMMON_PREFIX[: dice.choice([0, 16, 64, 80])] + own
        try:
            self.simulator.add(
                make_request(name, prompt, max_tokens=dice.randint(1, 40), priority=dice.randint(0, 2), **params)
            )
        except InvalidRequestError:
            return
        self._names.append(name)

    def _fail(self, plan) -> None:
        columns = "rows", "num_computed_tokens", "num_scheduled_tokens", "num_logits", "prompt_logprobs"
        nothing = {name: [] for name in columns} | {"spec_token_ids": {}}
        self.simulator.executor.execute(replace(plan, num_draws=[0] * len(plan.fork_rows), **nothing))
        self.simulator.scheduler.fail("a kernel fell over")
        self.simulator.num_steps += 1

    def _end_one(self) -> None:
        one = self._dice.choice(self.simulator.scheduler.sequences)
        if one.state is SequenceState.RUNNING and not one.request.sampling_params.use_beam_search:
            self.simulator.scheduler.finish_sequence(one.sequence_id, "stop", "END")


LARGE = EngineStarted(0.0, 5000, 16, 98304, 1, 8192, max_num_seqs=64, max_num_batched_tokens=512)


def large_run(num_steps: int = 2000) -> Iterator[Event]:
    """64 sequences at once, a pool of 5,000 blocks, so many steps: the events alone, as no engine is quick enough."""
    free, tables, lens = list(range(5000, 0, -1)), dict[int, list[int]](), dict[int, int]()
    name = 0
    for step in range(1, num_steps + 1):
        time = step * 0.01
        while len(tables) < 64 and len(free) > 200:
            name += 1
            yield events.Arrived(time, f"cmpl-{name:024x}", 200, 1, sequence_id=name, max_tokens=900)
            yield events.Started(time, name, f"cmpl-{name:024x}", 0)
            tables[name], lens[name] = [], 0
        starts, grants = tuple(lens.values()), tuple(200 if lens[one] == 0 else 1 for one in tables)
        for one, grant in zip(tables, grants, strict=True):
            num_new = -(-(lens[one] + grant) // 16) - len(tables[one])
            if num_new:
                new = tuple(free.pop() for _ in range(num_new))
                yield events.BlocksGiven(time, one, 0, new)
                tables[one] += new
            full = tables[one][lens[one] // 16 : (lens[one] + grant) // 16]
            if full:
                parent = tables[one][lens[one] // 16 - 1] if lens[one] >= 16 else 0
                hashes = tuple((one << 32 | block).to_bytes(8, "big") for block in full)
                yield events.BlocksPublished(time, one, 0, parent, tuple(full), lens[one] // 16, hashes)
            lens[one] += grant
        yield events.Scheduled(time, step, tuple(tables), starts, grants, 0, len(free))
        yield events.Sampled(time, step, tuple(tables), len(tables))
        yield events.StepDone(time, step, 0.001, 0.008, 0.001, sum(grants), len(tables))
        for one in [one for one in tables if lens[one] > 700 + one * 37 % 500]:
            block_ids = tuple(tables.pop(one))
            yield events.BlocksFreed(time, one, 0, block_ids, "finished")
            for block_id in block_ids[: lens[one] // 16]:
                yield events.BlockEvicted(time, block_id)
            free += block_ids
            yield events.Finished(time, one, f"cmpl-{one:024x}", "length", lens.pop(one) - 200)
