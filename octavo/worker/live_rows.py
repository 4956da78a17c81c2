"""The rows of live sequences, both halves of them: tokens and blocks, and how each wants its tokens drawn.

A plan's changes are applied here, whatever device computes the step.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.device import CompiledModel
from octavo.messages import StepPlan
from octavo.sampling.sampler import Sampler
from octavo.worker.request_states import RequestStates


class LiveRows:
    """num_prompt_logprobs: row -> how many, where they are asked for."""

    def __init__(self, states: RequestStates, sampler: Sampler) -> None:
        self.states = states
        self.sampler = sampler
        self.num_prompt_logprobs: dict[int, int] = {}

    def apply(self, plan: StepPlan, model: CompiledModel) -> None:
        """Bring the rows up to date, and the model's blocks, in the order `StepPlan` states."""
        for row in plan.freed_rows:
            self.num_prompt_logprobs.pop(row, None)
        for new in plan.new_rows:
            self.states.enter(new)
            self.sampler.enter(new)
            if new.sampling_params.prompt_logprobs is not None:
                self.num_prompt_logprobs[new.row] = new.sampling_params.prompt_logprobs
        for write in plan.block_writes:
            self.states.write_blocks(write)
        for fork in plan.fork_rows:
            self.states.fork(fork)
            self.sampler.fork(fork)
        if plan.copies:
            pairs = np.array(plan.copies, np.int32)
            model.copy_blocks(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))
