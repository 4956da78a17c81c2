"""The plan of decode attention, made by the GPU's own source on the CPU, over thousands of random steps.

`csrc/cuda/attention_plan.cu` is plain C++ except for thread indices and barriers, which `plan_on_cpu/ptx.cuh` replaces.
Here one thread makes the plans, with the memory and the structs of a GPU's launches.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.build.build import find_sources  # noqa: E402
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda_cpp import attention_plan  # noqa: E402
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan  # noqa: E402
from octavo.kernels.cuda_cpp.shape import Shape  # noqa: E402
from tests.kernels.kept_library import compiled_beside  # noqa: E402

HERE = Path(__file__).parent / "plan_on_cpu"
HOPPER = GPU("a GPU", (9, 0), 1 << 34, 132)


def compile_plans(costs: dict[str, int]) -> ctypes.CDLL:
    macros = [f"-D{name}={value}" for name, value in {"THREADS": 1, **costs}.items()]
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-Wno-unknown-pragmas", *macros]
    loaded = ctypes.CDLL(str(compiled_beside("check_plan.cpp", [HERE, find_sources() / "cuda"], flags)))
    loaded.octavo_check_plan.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return compile_plans(attention_plan.HOPPER_COSTS)


@pytest.fixture
def made(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes SharedPlan run here; returns the arguments of each launch."""
    launches: list[Any] = []

    class OneThread:
        def __init__(self, cubin: bytes, name: str) -> None:
            self._function = getattr(library, name)

        def allow_shared(self, num_bytes: int) -> None: ...

        def launch(self, grid: int, block: int, arguments: tuple[ctypes.Structure, ...], **how: object) -> None:
            self._function.argtypes = [type(one) for one in arguments]
            self._function(*arguments)
            launches.append(arguments)

    monkeypatch.setattr(attention_plan, "Kernel", OneThread)
    monkeypatch.setattr(attention_plan, "compile_plan", lambda *given: (b"", 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return launches


@dataclass
class Step:
    """The sequences of a step, and the sizes that its plan depends on."""

    query_lens: list[int]
    seq_lens: list[int]
    rows: list[int]
    table: np.ndarray[Any, Any]
    block_size: int
    shape: Shape
    num_stretches: int
    window: int | None = None
    fixed_part: int = 0
    shares: bool = True


def random_step(rng: np.random.Generator) -> Step:
    num = int(rng.integers(1, 1000 if rng.random() < 0.02 else 70))
    block_size = int(rng.choice([16, 32, 64]))
    longest = int(rng.choice([40, 600, 3000]))
    shape = Shape(int(rng.choice([1, 4, 8])), int(rng.choice([1, 2, 3, 4, 8, 16])), int(rng.choice([1, 1, 1, 2, 16])))
    queries = rng.integers(1, shape.max_queries + 1, num)
    is_chunk = rng.random(num) < 0.05
    queries[is_chunk] = shape.max_queries + rng.integers(1, 30, int(is_chunk.sum()))
    lens = rng.integers(0, longest + 1, num) + queries
    is_padding = rng.random(num) < 0.05
    lens[is_padding] = 0
    step = Step(
        queries.tolist(), lens.tolist(), rng.permutation(num + 2)[:num].tolist(),
        np.zeros((num + 2, -(-int(lens.max(initial=1)) // block_size) + 1), np.int32), block_size, shape,
        int(rng.integers(1, 133)),
    )  # fmt: skip
    free = iter(rng.permutation(step.table.size).tolist())
    for row, length in zip(step.rows, step.seq_lens, strict=True):
        for block in range(-(-length // block_size)):
            step.table[row, block] = next(free) + 1
    how = rng.random()
    if how < 0.15:
        step.fixed_part = int(rng.choice([64, 256]))
    elif how < 0.3:
        step.window = int(rng.integers(1, longest + 1))
        forget_before_windows(step)
    if step.window is None:
        share(step, rng)
    step.shares = bool(rng.random() < 0.8)
    return step


def share(step: Step, rng: np.random.Generator) -> None:
    """Trees: sequences begin with the full blocks of an earlier one."""
    full = [(n - q) // step.block_size for n, q in zip(step.seq_lens, step.query_lens, strict=True)]
    for target in range(1, len(full)):
        source = int(rng.integers(0, target))
        most = max(0, min(full[source], full[target]))
        blocks = most if rng.random() < 0.4 else int(rng.integers(0, most + 1))
        if rng.random() < 0.8:
            step.table[step.rows[target], :blocks] = step.table[step.rows[source], :blocks]


def forget_before_windows(step: Step) -> None:
    """The table has the null block wherever no query of the step reads."""
    assert step.window is not None, "a step with a window"
    for row, length, queries in zip(step.rows, step.seq_lens, step.query_lens, strict=True):
        step.table[row, : max(0, length - queries - step.window + 1) // step.block_size] = 0


def check(library: ctypes.CDLL, made: list[Any], step: Step, plan: SharedPlan | None = None) -> SharedPlan:
    num_tokens = sum(step.seq_lens)
    plan = plan or SharedPlan(
        step.shape, len(step.seq_lens), step.num_stretches, HOPPER, torch.device("cpu"),
        shares=step.shares and not step.fixed_part, fixed_part=step.fixed_part, max_num_tokens=num_tokens,
    )  # fmt: skip
    starts, lens, rows, table = (
        torch.as_tensor(np.asarray(values, np.int32))
        for values in (np.cumsum([0, *step.query_lens]), step.seq_lens, step.rows, step.table)
    )
    plan.make(
        query_start_loc=starts, seq_lens=lens, rows=rows, block_table=table, block_size=step.block_size,
        window=step.window, chained=False,
    )  # fmt: skip
    given = map(ctypes.byref, made.pop())
    failure = library.octavo_check_plan(*given, len(plan.units), plan.max_part_rows()).decode()
    assert not failure, f"{failure}: {step}"
    return plan


@pytest.mark.parametrize("part", range(4))
def test_random_steps(part: int, library: ctypes.CDLL, made: list[Any]) -> None:
    num_shared = 0
    for seed in range(part * 1500, (part + 1) * 1500):
        plan = check(library, made, random_step(np.random.default_rng(seed)))
        num_shared += int(plan.units[: int(plan.totals[0]), 10].sum())
    assert num_shared > 1500, "little was shared"


def test_a_plan_of_fewer_sequences_in_the_memory_of_more(library: ctypes.CDLL, made: list[Any]) -> None:
    """A step's plan does not depend on what an earlier plan left in memory."""
    shape = Shape(8, 4)
    plan = SharedPlan(shape, 1000, 33, HOPPER, torch.device("cpu"))
    for seed in range(300):
        step = random_step(np.random.default_rng(seed))
        step.shape, step.fixed_part, step.num_stretches = shape, 0, 33
        check(library, made, step, plan)


def test_a_common_prefix_is_read_once(library: ctypes.CDLL, made: list[Any]) -> None:
    """8 groups of 32 samples over 4096 tokens: two units per group, with 16 members each, and a tail per sample."""
    num, size = 256, 16
    table = np.arange(1, num * 272 + 1, dtype=np.int32).reshape(num, 272)
    for s in range(num):
        table[s, : 4096 // size] = table[s // 32 * 32, : 4096 // size]
    step = Step([1] * num, [4096 + 200] * num, list(range(num)), table, size, Shape(8, 4), 33)
    plan = check(library, made, step)
    units = plan.units[: int(plan.totals[0])]
    shared = units[units[:, 10] == 1]
    assert [(row[1], row[2], row[3]) for row in shared.tolist()] == [(0, 4096, 16)] * 16
    assert len(units) == 16 + num


def test_a_short_common_prefix_is_read_by_each(library: ctypes.CDLL, made: list[Any]) -> None:
    table = np.arange(1, 33, dtype=np.int32).reshape(4, 8)
    table[:, 0] = 1
    plan = check(library, made, Step([1] * 4, [100] * 4, [0, 1, 2, 3], table, 16, Shape(8, 4), 33))
    assert int(plan.totals[0]) == 4


@pytest.mark.parametrize("has_codes", [False, True])
def test_costs_are_those_of_the_cache(has_codes: bool, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over codes, a box with all rows costs more than over numbers, which four warps multiply together."""
    asked: list[Any] = []
    monkeypatch.setattr(attention_plan, "compile_plan", lambda *given: asked.append(given[2]) or (b"", 1))
    SharedPlan(Shape(8, 4), 4, 33, HOPPER, torch.device("cpu"), has_codes=has_codes)
    numbers, codes = (attention_plan.plan_costs(HOPPER, has_codes=one) for one in (False, True))
    assert asked == [codes if has_codes else numbers]
    assert codes["WIDE_COST"] > numbers["WIDE_COST"]
