"""The worker: weights, KV pool and rows of one device. It sees plans, never requests, queues or pools of blocks."""

from __future__ import annotations

from octavo.kernels.ops import Backend, KVLayout, Model, StepLimits
from octavo.messages import StepPlan, StepResult
from octavo.sampling.sampler import Sampler
from octavo.worker.kv_storage import allocate_pool
from octavo.worker.model_runner import ModelRunner
from octavo.worker.request_states import RequestStates


class Worker:
    """Binds a model to a backend and runs steps."""

    def __init__(self, backend: Backend, model: Model, kv: KVLayout, limits: StepLimits, num_groups: int) -> None:
        compiled = backend.compile(model, kv, allocate_pool(kv), limits)
        states = RequestStates(limits.max_num_seqs, limits.max_model_len, kv.block_size, num_groups)
        self._runner = ModelRunner(compiled, states, Sampler(limits.max_num_seqs), limits.max_num_seqs)

    def execute(self, plan: StepPlan) -> StepResult:
        return self._runner.execute(plan)
