"""Random runs of the simulator, with everything that can happen to a block: what the pictures' tests replay."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from octavo.cache.blocks import make_groups
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.observe.events import EngineStarted
from octavo.request import SequenceState
from octavo.testing.fake_executor import VOCAB_SIZE
from octavo.testing.simulate import Simulator, make_request

WINDOWS: list[tuple[int | None, ...]] = [(None,), (8,), (40, None), (5, 5, 33, 33, None, None)]
COMMON_PREFIX = [(i * 37) % VOCAB_SIZE for i in range(80)]
BLOCK_SIZE, MAX_MODEL_LEN = 8, 300


class RandomRun:
    """One engine under random load: samples, beams, preemptions, prefix hits, windows, aborts, failed steps, resets of
    the prefix cache, runs of several tokens. `steps` yields when a step is planned and its events are written."""

    def __init__(self, seed: int) -> None:
        self._dice = dice = random.Random(seed)
        windows = WINDOWS[seed % len(WINDOWS)]
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
            run_len=(lambda: dice.choice([0, 1, 1, 3])) if seed % 3 == 2 else None,
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
