"""The worker: weights, KV pool and rows of one device. It sees plans, never requests, queues or pools of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.config import LogprobsMode
from octavo.kernels.cuda.compile_ahead import KernelCompiler
from octavo.kernels.ops import Backend, KVLayout, Model, StepLimits
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.sampling.sampler import Sampler
from octavo.worker.kv_storage import allocate_pool
from octavo.worker.model_runner import ModelRunner
from octavo.worker.request_states import RequestStates

if TYPE_CHECKING:
    from octavo.kernels.cuda.model import TritonModel


class Worker:
    """Runs steps. Made for the host's memory, or for a device's."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    @classmethod
    def on_host(
        cls,
        backend: Backend,
        model: Model,
        kv: KVLayout,
        limits: StepLimits,
        num_groups: int,
        logprobs_mode: LogprobsMode,
    ) -> Worker:
        compiled = backend.compile(model, kv, allocate_pool(kv), limits)
        states = RequestStates(limits.max_num_seqs, limits.max_model_len, kv.block_size, num_groups)
        sampler, seqs = Sampler(limits.max_num_seqs), limits.max_num_seqs
        return cls(ModelRunner(compiled, states, sampler, seqs, logprobs_mode=logprobs_mode))

    @classmethod
    def on_device(
        cls, loaded: TritonModel, kv: KVLayout, limits: StepLimits, num_groups: int, logprobs_mode: LogprobsMode
    ) -> Worker:
        from octavo.worker.device_runner import DeviceRunner  # it imports torch, which a host's worker never does

        states = RequestStates(limits.max_num_seqs, limits.max_model_len, kv.block_size, num_groups)
        loaded.bind_pool(kv.num_blocks)
        sampler, seqs = Sampler(limits.max_num_seqs), limits.max_num_seqs
        return cls(DeviceRunner(loaded, states, sampler, seqs, logprobs_mode=logprobs_mode))

    def execute(self, plan: StepPlan) -> StepResult:
        """Run a step and wait for its end."""
        return self._runner.execute(plan)

    def begin(self, plan: StepPlan) -> PendingStep:
        """Begin a step: a device goes on with it by itself, a host has done it when this returns."""
        return self._runner.begin(plan)

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Run a step of every kind before there are any that somebody waits for. compiler: for what they need."""
        self._runner.warm_up(limits, compiler)

    def close(self) -> None:
        """Give the memory back. Nothing runs afterwards."""
        self._runner.close()
