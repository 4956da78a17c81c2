"""A mixture of experts: the choice against a loop in float64, and the cpu backend against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.kernels.arrays import FloatArray  # noqa: E402
from octavo.kernels.cpu.device import CpuDevice  # noqa: E402
from octavo.kernels.mixture import ExpertStack, Gate, Mixture, Routing  # noqa: E402
from octavo.kernels.ops import OPS, Ops, Tensor  # noqa: E402
from octavo.kernels.reference.device import ReferenceDevice  # noqa: E402
from octavo.kernels.reference.mixture import choose, gated  # noqa: E402
from octavo.kernels.tensor import DType, HostTensor, num_bytes  # noqa: E402
from octavo.testing.made_parameters import linear, parameter  # noqa: E402
from octavo.testing.op_harness import Harness, random_table, run_once  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

HIDDEN, INNER = 64, 96
TOP_TWO = Routing(num_experts=6, num_chosen=2)
#: DeepSeek V3's choice: two of three groups, by their two best experts
GROUPED = Routing(
    num_experts=12, num_chosen=4, scoring="sigmoid", scale=2.5, num_groups=3, top_groups=2, group_score="sum_of_two"
)


@dataclass(frozen=True)
class Case:
    routing: Routing = TOP_TWO
    gate: Gate = field(default_factory=Gate)
    has_bias: bool = False  # of the choice
    has_biases: bool = False  # of the products
    dtypes: tuple[DType, DType, DType] = ("F32", "F32", "F32")  # gate, up, down


CASES = {
    "mixtral": Case(),
    "not renormalised": Case(replace(TOP_TWO, renormalises=False, scale=0.5)),
    "all experts": Case(replace(TOP_TWO, num_chosen=6)),
    "one expert": Case(Routing(num_experts=1, num_chosen=1)),
    "deepseek v3": Case(GROUPED, has_bias=True),
    "deepseek v2": Case(replace(GROUPED, scoring="softmax", renormalises=False, group_score="largest", top_groups=1)),
    "gpt-oss": Case(gate=Gate("clamped", limit=1.0), has_biases=True),
    "gelu": Case(gate=Gate("gelu")),
    "bfloat16": Case(dtypes=("BF16", "BF16", "BF16")),
    "two types": Case(dtypes=("F32", "BF16", "F16"), has_biases=True),
}


def drawn(rng: np.random.Generator, *shape: int) -> FloatArray:
    return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)


def stored(rng: np.random.Generator, dtype: DType, *shape: int) -> HostTensor | FloatArray:
    if dtype == "F32":
        return drawn(rng, *shape)
    if dtype == "Q8_0":
        blocks = rng.integers(0, 256, (num_bytes(dtype, shape) // 34, 34), np.uint8)
        blocks[:, :2] = np.array([0.001], np.float16).view(np.uint8)
        return HostTensor(dtype, shape, blocks.reshape(-1))
    values = drawn(rng, *shape)
    halves = values.astype(np.float16).view(np.uint8) if dtype == "F16" else (values.view(np.uint32) >> 16)
    data = halves if dtype == "F16" else halves.astype(np.uint16).view(np.uint8)
    return HostTensor(dtype, shape, np.ascontiguousarray(data).reshape(-1))


def mixture(case: Case) -> Mixture:
    rng, count = np.random.default_rng(3), case.routing.num_experts

    def biases(size: int) -> FloatArray | None:
        return drawn(rng, size) * 8 if case.has_biases else None

    gate, up, down = case.dtypes
    pairs = [(stored(rng, gate, INNER, HIDDEN), stored(rng, up, INNER, HIDDEN)) for _ in range(count)]
    return Mixture(
        name="experts",
        routing=case.routing,
        router=linear(4 * drawn(rng, count, HIDDEN), bias=biases(count)),
        bias=parameter(drawn(rng, count)) if case.has_bias else None,
        gate_up=ExpertStack(tuple(linear(*pair, bias=biases(2 * INNER)) for pair in pairs)),
        down=ExpertStack(tuple(linear(stored(rng, down, HIDDEN, INNER), bias=biases(HIDDEN)) for _ in range(count))),
        gate=case.gate,
    )


def function_of(layer: Mixture) -> Callable[[Ops], Tensor]:
    table = random_table(HIDDEN)

    def function(ops: Ops) -> Tensor:
        return ops.mixture(ops.embedding(table, "input_ids"), layer)

    return function


@pytest.mark.parametrize("name", CASES)
def test_cpu_equals_the_reference(name: str) -> None:
    function = function_of(mixture(CASES[name]))
    for num_tokens in (1, 3, 40):
        ours = run_once(CpuDevice(2), function, HIDDEN, num_tokens)
        theirs = run_once(ReferenceDevice(), function, HIDDEN, num_tokens)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=OPS["mixture"].error * np.abs(theirs).max())


def test_quantised_experts_with_activations_in_two_bytes() -> None:
    function = function_of(mixture(Case(dtypes=("Q8_0", "Q8_0", "Q8_0"))))
    for num_tokens in (1, 33):
        ours = run_once(CpuDevice(2, activation_dtype="int16"), function, HIDDEN, num_tokens)
        theirs = run_once(ReferenceDevice(), function, HIDDEN, num_tokens)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-4 * np.abs(theirs).max())


def test_a_row_does_not_feel_the_others() -> None:
    function = function_of(mixture(CASES["deepseek v3"]))
    many = run_once(CpuDevice(2), function, HIDDEN, 700)  # more than are computed at once
    for num_tokens in (1, 2, 77):
        few = run_once(CpuDevice(1), function, HIDDEN, num_tokens)
        assert np.array_equal(few, many[:num_tokens]), "bitwise, whatever the threads and rows"


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek v3"])
def test_ranks_with_some_of_the_experts_add_up(name: str) -> None:
    """Without a bias of `down` on more than one rank it would be added twice; here each expert is on one rank."""
    layer = mixture(CASES[name])
    middle = layer.routing.num_experts // 3
    for device in (CpuDevice(2), ReferenceDevice()):
        whole = run_once(device, function_of(layer), HIDDEN, 9)
        parts = [
            run_once(device, function_of(part_of(layer, own)), HIDDEN, 9)
            for own in (slice(0, middle), slice(middle, layer.routing.num_experts))
        ]
        np.testing.assert_allclose(sum(parts), whole, atol=1e-5)


def part_of(layer: Mixture, own: slice) -> Mixture:
    gate_up, down = (ExpertStack(stack.experts[own]) for stack in (layer.gate_up, layer.down))
    part = replace(layer, gate_up=gate_up, down=down, first_expert=own.start)
    assert part.is_partial
    return part


@pytest.mark.parametrize("routing", [TOP_TWO, replace(TOP_TWO, renormalises=False), GROUPED])
def test_a_choice_is_what_a_loop_makes(routing: Routing) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, routing.num_experts)).astype(np.float32)
    bias = rng.standard_normal(routing.num_experts).astype(np.float32)
    chosen, weights = choose(torch.from_numpy(logits), torch.from_numpy(bias), routing)
    for row, ids, got in zip(logits.astype(np.float64), chosen.tolist(), weights.numpy(), strict=True):
        scores = 1 / (1 + np.exp(-row)) if routing.scoring == "sigmoid" else np.exp(row) / np.exp(row).sum()
        ranked, size = scores + bias, routing.num_experts // routing.num_groups
        groups = sorted(range(routing.num_groups), key=lambda g: -sum(sorted(ranked[g * size : (g + 1) * size])[-2:]))
        allowed = [e for e in range(routing.num_experts) if e // size in groups[: routing.top_groups]]
        expected = sorted(allowed, key=lambda e: -ranked[e])[: routing.num_chosen]
        assert ids == expected
        total = scores[ids].sum() if routing.renormalises else 1.0
        np.testing.assert_allclose(got, scores[ids] / total * routing.scale, rtol=1e-5)


def test_equal_scores_choose_the_first() -> None:
    chosen, weights = choose(torch.zeros(2, 6), None, TOP_TWO)
    assert chosen.tolist() == [[0, 1], [0, 1]]
    assert weights.tolist() == [[0.5, 0.5]] * 2


def test_what_is_not_a_number_stays_in_its_row() -> None:
    layer = mixture(CASES["deepseek v3"])
    table = random_table(HIDDEN)
    spoilt = table.compact().data.view(np.float32).reshape(table.shape).copy()
    spoilt[5] = np.nan
    with_nan = parameter(spoilt)
    harness = Harness(CpuDevice(2), lambda ops: ops.mixture(ops.embedding(with_nan, "input_ids"), layer), HIDDEN)
    (rows,) = harness.step([(0, [4, 5, 6])])
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()


def test_the_clamped_gate() -> None:
    gate_up = torch.tensor([[9.0, -9.0, 0.5, 9.0, -9.0, 0.25]])
    glu = [1.0, -9.0, 0.5]
    expected = [g / (1 + np.exp(-1.702 * g)) * (u + 1) for g, u in zip(glu, (1.0, -1.0, 0.25), strict=True)]
    np.testing.assert_allclose(gated(gate_up, Gate("clamped", limit=1.0))[0], expected, rtol=1e-6, atol=1e-9)


def test_one_gate_scales_a_row() -> None:
    x, gate = random_table(37), random_table(1, seed=2)

    def function(ops: Ops) -> Tensor:
        return ops.gate_rows(ops.embedding(x, "input_ids"), ops.embedding(gate, "input_ids"))

    for num_tokens in (1, 150):
        ours, theirs = (run_once(device, function, 37, num_tokens) for device in (CpuDevice(2), ReferenceDevice()))
        np.testing.assert_allclose(ours, theirs, rtol=OPS["gate_rows"].error)
