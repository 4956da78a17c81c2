"""Steps whose sequences all have few new tokens: decodes in CUDA C++ beside the kernels for chunks and for decodes.

    python -m benchmarks.kernels.gpu_verify_chunks [quick] [G2] [G4] [G8]

8 kv heads of 128, bf16, G query heads for each. Microseconds of one layer; block tables are shuffled, and rotate so
that no call finds its keys cached. All but the last column compute every sequence of the step, those with one new token
by the decode kernel:

    cuda      one launch of the decode kernel for up to 16 new tokens each
    hopper    decodes in CUDA C++, chunks by the Gluon kernel, which takes them on Hopper from 384 tokens on
    triton    decodes in CUDA C++, chunks by the plain kernel
    guesses   the plain decode kernel, for the smallest number of new tokens that it is compiled for
    plan      what the plan of `cuda` takes, once a step; its price is paid by all layers

The last two columns: the faster of hopper and triton as a share of `cuda`, and the largest difference of results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch

from benchmarks.kernels.gpu_attention import BF16, BLOCK, CUDA, Case, make_case
from octavo.kernels.cuda.driver import find_gpu, has_hopper_kernels
from octavo.kernels.cuda.timing import copies_past_cache, graph_time_us, print_machine
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan
from octavo.kernels.cuda_cpp.decode_attention import DecodeAttention, Kind, Partials
from octavo.kernels.cuda_cpp.shape import Shape, short_chunk
from octavo.kernels.device import DECODE_THRESHOLDS
from octavo.kernels.triton.attention.decode_attention import decode_attention
from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill
from octavo.kernels.triton.attention.memory import DecodeWorkspace
from octavo.kernels.triton.attention.plan import AttentionPlan, make_plan
from octavo.kernels.triton.attention.prefill_attention import prefill_attention

GPU = find_gpu(0)
KV_HEADS, DIM, LONGEST = 8, 128, 16
ROOM = 256  # sequences; the more, the more parts a sequence may have
CONTEXTS = (1024, 8192, 32000)
Launch = Callable[[torch.Tensor], None]


class Trial:
    """A step, and the launches that compute it; each takes a block table."""

    def __init__(self, queries: list[int], context: int, group: int) -> None:
        lens = [context] * len(queries)
        copies = copies_past_cache(sum(lens) * KV_HEADS * DIM * 4, most=8)
        self.case: Case = make_case(lens, queries, group * KV_HEADS, KV_HEADS, DIM, copies)
        self.queries = queries
        self.q = torch.randn(sum(queries), group * KV_HEADS * DIM, device=CUDA, dtype=BF16)
        self.out = torch.zeros_like(self.q)

    def us(self, launch: Launch) -> tuple[float, torch.Tensor]:
        """Of one call, and its result for the first table."""
        self.out.zero_()
        launch(self.case.tables[0])
        result = self.out.clone()
        return graph_time_us([partial(launch, table) for table in self.case.tables]), result

    def decodes(self, most: int) -> tuple[Launch, Launch]:
        """The decode kernel for up to so many new tokens, and what plans it."""
        assert GPU is not None, "this measures on a GPU"
        layer, num = self.case.layer, len(self.queries)
        shape = Shape.of(layer, most)
        plan = SharedPlan(shape, num, shape.num_stretches(GPU, DIM), GPU, CUDA, shares=most == 1)
        partials = Partials.allocate(plan.max_part_rows(), num, shape, DIM, CUDA)
        kernel = DecodeAttention(Kind.of(layer, BF16, self.case.layout, False, most), GPU)

        def make(table: torch.Tensor) -> None:
            plan.make(**self.case.step, block_table=table, block_size=BLOCK, window=None, chained=False)

        def run(table: torch.Tensor) -> None:
            kernel.run(self.q, self.out, layer, self.case.pool, plan, partials, block_table=table, transform=None)

        make(self.case.tables[0])
        torch.cuda.synchronize()
        return run, make

    def chunks(self, hopper: HopperPrefill | None) -> Launch:
        """As a step is computed whose chunks are not decodes."""
        where = (self.q, self.out, self.case.layer, self.case.pool, self.case.plan)
        decode = self.decodes(1)[0] if 1 in self.queries else None

        def launch(table: torch.Tensor) -> None:
            if decode is not None:
                decode(table)
            if hopper is not None:
                hopper.prefill(*where, block_table=table)
            else:
                prefill_attention(*where, max_tiles=len(self.queries), block_table=table)

        return launch

    def guesses(self) -> Launch:
        case = self.case
        most = next(size for size in DECODE_THRESHOLDS if size >= max(self.queries))
        plan, step = AttentionPlan.allocate(ROOM, len(self.q), CUDA), case.step
        workspace = DecodeWorkspace.allocate(ROOM, [case.layer], CUDA)
        tables = {"block_table": case.tables[0], "block_size": BLOCK}
        make_plan(plan, positions=case.positions, decode_threshold=most, **tables, **step)  # type: ignore[arg-type]
        number = torch.cuda.get_device_properties(0).multi_processor_count
        return lambda table: decode_attention(
            self.q, self.out, case.layer, case.pool, plan, workspace, query_start_loc=step["query_start_loc"],
            block_table=table, num_multiprocessors=number, queries=most,
        )  # fmt: skip


def row(name: str, queries: list[int], context: int, group: int, hopper: HopperPrefill | None) -> None:
    trial = Trial(queries, context, group)
    cuda, make = trial.decodes(LONGEST)
    launches = {"cuda": cuda, "triton": trial.chunks(None), "guesses": trial.guesses()}
    if hopper is not None:
        launches["hopper"] = trial.chunks(hopper)
    measured = {how: trial.us(launch) for how, launch in launches.items()}
    plan_us = trial.us(make)[0]
    times = {how: us for how, (us, _) in measured.items()}
    truth = measured["triton"][1].float()
    worst = max(float((result.float() - truth).abs().max() / truth.abs().max()) for _, result in measured.values())
    assert worst < 0.03, f"results differ by {worst:.3f} of the largest number"
    best = min(times.get("hopper", np.inf), times["triton"])
    cells = " ".join(f"{times.get(how, np.nan):9.1f}" for how in ("cuda", "hopper", "triton", "guesses"))
    print(f"{name:>30} {context:>6}: {cells} {plan_us:6.1f} {best / times['cuda']:7.2f} {worst:8.4f}", flush=True)


def main() -> None:
    print_machine()
    assert GPU is not None, "this measures on a GPU"
    words = sys.argv[1:]
    groups = [int(word[1:]) for word in words if word[:1] == "G"] or [4]
    hopper = HopperPrefill(GPU.num_multiprocessors, CUDA) if has_hopper_kernels(GPU.capability) else None
    quick = "quick" in words
    numbers, lengths = ((1, 16), (4, 16)) if quick else ((1, 4, 16, 64), (2, 4, 8, 16))
    for group in groups:
        most = short_chunk([Trial([2], 64, group).case.layer], 64, LONGEST)
        print(f"\nG{group}, the engine takes chunks of up to {most} tokens as decodes", flush=True)
        print(f"{'sequences x new tokens, context':>37}: {'cuda':>9} {'hopper':>9} {'triton':>9} {'guesses':>9} "
              f"{'plan':>6} {'share':>7} {'differ':>8}")  # fmt: skip
        for number, length, context in product(numbers, lengths, CONTEXTS):
            row(f"{number} x {length}", [length] * number, context, group, hopper)
        for number, context in product((1, 8) if quick else (1, 8, 32), CONTEXTS):
            row(f"{number} x 16 and {64 - number} x 1", [16] * number + [1] * (64 - number), context, group, hopper)


if __name__ == "__main__":
    main()
