"""What a step that found no memory says: the component, the numbers of the plan, and the smallest change that fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import OutOfMemoryError
from octavo.kernels.device import Device
from octavo.kernels.ledger import size
from octavo.messages import StepPlan
from octavo.observe.machine import memory
from octavo.worker.plan import Change, MemoryPlan, Planner, smallest_changes, told
from octavo.worker.task import WorkerTask

#: a failed step and its error -> the error to raise
Explain = Callable[[StepPlan, MemoryError | RuntimeError], OutOfMemoryError]

_SCALES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ASKED = re.compile(r"allocate (?P<number>[0-9.]+) (?P<unit>[KMG]iB)")


@dataclass(frozen=True, slots=True)
class StepFaults:
    """Opens the checkpoint's headers again, only after a fault. kv_bytes: of the KV pool."""

    task: WorkerTask
    device: Device
    kv_bytes: int

    def explain(self, step: StepPlan, error: MemoryError | RuntimeError) -> OutOfMemoryError:
        what = f"a step of {step.num_tokens} tokens and {len(step.rows)} sequences found no memory"
        try:
            detail = self._on_device(error) if self.device.sizes_cache_last else self._on_host()
        except Exception:  # no memory for the plan either
            detail = "set max_num_batched_tokens, max_num_seqs or kv_cache_memory_bytes lower"
        fault = OutOfMemoryError(f"{what} {detail} ({str(error).partition(chr(10))[0][:300]})")
        fault.__cause__ = error
        return fault

    def _on_device(self, error: MemoryError | RuntimeError) -> str:
        """Activations have their memory since the model was loaded, so it is for what comes on top: log-probabilities,
        graphs, kernels. KV blocks must leave room for it."""
        asked = _ASKED.search(str(error))
        num_bytes = int(float(asked["number"]) * _SCALES[asked["unit"]]) if asked else 256 << 20
        fits = max(self.kv_bytes - 2 * num_bytes, 0)
        cure = Change("kv_cache_memory_bytes", fits) if fits else "gpu_memory_utilization lower"
        plan = Planner.of(self.task, self.device).plan(self.task, self.task.world.tensor_parallel_size)
        return (
            f"on the GPU for {size(num_bytes)} of log-probabilities, graphs or kernels: planned are {told(plan)}, and "
            f"KV blocks have {size(self.kv_bytes)}; set {cure}, or ask for fewer logprobs"
        )

    def _on_host(self) -> str:
        free = memory()[1]
        planner = Planner.of(self.task, self.device)
        now = _step_bytes(planner.plan(self.task))
        most = min(free, now - 1)
        changes = smallest_changes(planner, self.task, lambda plan: plan.problem is None and _step_bytes(plan) <= most)
        cure = " or ".join(map(str, changes)) or "kv_cache_memory_bytes lower"
        return f"for its activations and workspace, {size(now)} in all; {size(free)} are free; set {cure}"


def _step_bytes(plan: MemoryPlan) -> int:
    return plan.ledger.of("activations") + plan.ledger.of("workspace")
