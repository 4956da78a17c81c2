"""The mixture of experts: any number of rows against torch in float32, with every way to choose and every gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from benchmarks.kernels import gpu_quantized_experts  # isort: skip
from octavo.kernels.cuda.driver import GPU, find_gpu  # isort: skip
from octavo.kernels.cuda.mixture_launch import kernels_of  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.expert_format import least_pairs, rows_for, why_not, why_not_codes, why_not_wide  # isort: skip
from octavo.kernels.kv_layout import KVDType  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.mixture import SILU, ExpertStack, Gate, Mixture, Routing  # isort: skip
from octavo.kernels.reference.mixture import choose, gated  # isort: skip
from octavo.kernels.triton.coded.weight_stack import WeightStack  # isort: skip
from octavo.kernels.triton.experts.combine import NextNorm  # isort: skip
from octavo.kernels.triton.experts.grouped_linear import Tile, choose_tile, grouped_linear  # isort: skip
from octavo.kernels.triton.experts.mixture import Experts, mixture  # isort: skip
from octavo.kernels.triton.experts.room import Room  # isort: skip
from octavo.testing import made_parameters  # isort: skip

if TYPE_CHECKING:
    from octavo.kernels.cuda.shared import Shared
    from octavo.kernels.cuda_cpp.experts import FewRowExperts

HIDDEN, INNER = (512, 384) if ON_GPU else (64, 96)
HOPPER = GPU("made", (9, 0), 1 << 34, 1)
TOP_TWO = Routing(num_experts=6, num_chosen=2)
DEEPSEEK = Routing(
    num_experts=12, num_chosen=4, scoring="sigmoid", scale=2.5, num_groups=3, top_groups=2, group_score="sum_of_two"
)
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
FEW_ROWS = [1, 2, 7, 8, 9, 31, 32]
NUM_ROWS = [1, 2, 7, 32, 33, 300, 2000] if ON_GPU else [1, 5, 40]


@dataclass(frozen=True)
class Case:
    routing: Routing = TOP_TWO
    gate: Gate = SILU
    has_biases: bool = False  # of the products
    has_bias: bool = False  # of the choice


CASES = {
    "mixtral": Case(),
    "deepseek v3": Case(DEEPSEEK, has_bias=True),
    "deepseek v2": Case(replace(DEEPSEEK, scoring="softmax", renormalises=False, group_score="largest", top_groups=1)),
    "gpt-oss": Case(gate=Gate("clamped", limit=1.0), has_biases=True),
    "one expert": Case(Routing(num_experts=1, num_chosen=1), Gate("gelu_tanh")),
}


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chained", [False, True] if ON_GPU else [False])
def test_it_equals_torch(name: str, dtype: torch.dtype, num_rows: int, chained: bool) -> None:
    experts, room = made(CASES[name], dtype), room_for(CASES[name], dtype)
    x, residual = (torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype) for _ in range(2))
    for added in (None, residual):
        out = torch.full_like(x, torch.nan) if added is None else added.clone()
        mixture(x, None if added is None else out, out, experts, room, chained=chained)
        expected = in_torch(x, experts, room)
        if added is not None:
            expected += added.float()
        assert relative_error(out, expected) < TOLERANCE[dtype]
    assert not room.counts.any(), "left as they were found, for the next mixture"
    assert not room.arrived.any()


@pytest.mark.parametrize("num_rows", [1, 5, 300] if ON_GPU else [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_after_it_is_of_the_sum_as_it_is_stored(dtype: torch.dtype, num_rows: int) -> None:
    case = CASES["gpt-oss"]
    experts, room = made(case, dtype), room_for(case, dtype)
    x, residual = (torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype) for _ in range(2))
    weight = torch.rand(HIDDEN, device=DEVICE) + 0.5
    total, normed = residual.clone(), torch.full_like(x, torch.nan)
    mixture(x, total, total, experts, room, chained=ON_GPU, norm=NextNorm(weight, 1e-5, normed))
    assert relative_error(total, residual.float() + in_torch(x, experts, room)) < TOLERANCE[dtype]
    expected = torch.nn.functional.rms_norm(total.double(), [HIDDEN], weight.double(), 1e-5)
    assert relative_error(normed, expected) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["deepseek v3", "gpt-oss"])
def test_fixed_sums_do_not_depend_on_the_other_rows(name: str, dtype: torch.dtype) -> None:
    experts, room = made(CASES[name], dtype), room_for(CASES[name], dtype)
    x = torch.randn(max(NUM_ROWS), HIDDEN, device=DEVICE).to(dtype)
    many = torch.empty_like(x)
    mixture(x, None, many, experts, room, is_fixed=True, chained=False)
    assert relative_error(many, in_torch(x, experts, room)) < TOLERANCE[dtype]
    for count in NUM_ROWS[:-1]:
        few = torch.empty_like(x[:count])
        mixture(x[:count], None, few, experts, room, is_fixed=True, chained=False)
        assert torch.equal(few, many[:count])


needs_nvcc = pytest.mark.skipif(not ON_GPU or find_nvcc() is None, reason="needs a GPU and nvcc")


@needs_nvcc
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_few_rows_in_cuda(name: str, dtype: torch.dtype) -> None:
    """With a residual and the norm before, and without. A logit may differ by what rounding the normed row does, but
    what follows from the logits is exact."""
    experts, room = made(CASES[name], dtype), room_for(CASES[name], dtype)
    few, norm = few_rows(experts, room, dtype), torch.rand(HIDDEN, device=DEVICE) + 0.5
    router = experts.router.double()
    for num_rows in FEW_ROWS:
        x, logits = torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype), room.logits[:num_rows, : len(router)]
        out, added = torch.full_like(x, torch.nan), x.clone()
        few.run(x, None, out)
        assert relative_error(logits, x.double() @ router.T) < 1e-5
        assert relative_error(out, in_torch(x, experts, room, logits)) < 2 * TOLERANCE[dtype]
        few.run(added, added, added, norm=norm)
        normed = torch.nn.functional.rms_norm(x.double(), [HIDDEN], norm.double(), 1e-6)
        rounding = torch.finfo(dtype).eps / 2 * (normed.square() @ router.square().T).sqrt()
        assert ((logits - normed @ router.T).abs() < 3 * rounding).all(), "7 standard deviations"
        expected = x.float() + in_torch(normed.to(dtype), experts, room, logits)
        assert relative_error(added, expected) < 2 * TOLERANCE[dtype]


@needs_nvcc
def test_few_rows_that_choose_alike_in_cuda() -> None:
    """An expert has more rows than a tile; some rank's experts are chosen by none."""
    case, dtype = CASES["gpt-oss"], torch.bfloat16
    whole, room = made(case, dtype), room_for(case, dtype)
    x = torch.randn(1, HIDDEN, device=DEVICE).to(dtype).expand(32, -1).contiguous()
    out, total = torch.empty_like(x), torch.zeros_like(x)
    few_rows(whole, room, dtype).run(x, None, out)
    assert relative_error(out, in_torch(x, whole, room)) < 2 * TOLERANCE[dtype]
    for expert in range(6):
        few_rows(ranks_part(whole, slice(expert, expert + 1)), room, dtype).run(x, total, total)
    assert relative_error(total, out) < 2 * TOLERANCE[dtype]


def few_rows(experts: Experts, room: Room, dtype: torch.dtype) -> FewRowExperts:
    from octavo.kernels.cuda_cpp.experts import FewRowExperts

    gpu = find_gpu(0)
    assert gpu is not None
    return FewRowExperts(experts, room, gpu, dtype)


def test_why_mixtures_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made_parameters.mixture(TOP_TWO, 64, 128)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("octavo.kernels.cuda_cpp.compile.find_nvcc", lambda: "nvcc")
    assert why_not(layer, "bfloat16", HOPPER, is_fixed=False) is None
    assert "other rows" in str(why_not(layer, "bfloat16", HOPPER, is_fixed=True))
    assert "16 bits" in str(why_not(layer, "float32", HOPPER, is_fixed=False))
    assert "Hopper" in str(why_not(layer, "bfloat16", replace(HOPPER, capability=(8, 0)), is_fixed=False))
    monkeypatch.setattr("octavo.kernels.cuda_cpp.compile.find_nvcc", lambda: None)
    assert "nvcc" in str(why_not(layer, "bfloat16", HOPPER, is_fixed=False))
    assert "multiples of 8 x 64" in str(why_not_codes(None, 12, 64))
    assert "inputs in order" in str(why_not_codes(ScaledFormat("U4", (1, 32), is_sorted=True), 64, 64))


@pytest.mark.parametrize(
    ("inner", "dtype", "has_nvcc", "why"),
    [
        (128, "bfloat16", True, None),
        (128, "float32", True, "16 bits"),
        (72, "bfloat16", True, "multiples of 32 x 16"),
        (128, "bfloat16", False, "nvcc"),
    ],
)
def test_why_wide_products_are_not_taken(
    inner: int, dtype: KVDType, has_nvcc: bool, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("octavo.kernels.cuda_cpp.compile.find_nvcc", lambda: "nvcc" if has_nvcc else None)
    reason = why_not_wide(made_parameters.mixture(TOP_TWO, 64, inner), dtype, HOPPER, is_fixed=False)
    assert reason is None if why is None else why in str(reason)
    newer = replace(HOPPER, capability=(10, 0))
    assert why_not_wide(made_parameters.mixture(TOP_TWO, 64, 128), "bfloat16", newer, is_fixed=False) is not None


def test_the_card_says_which_rows_are_whose() -> None:
    small, large = (made_parameters.mixture(TOP_TWO, 64, inner) for inner in (128, 2048))

    def card(few: str | None, wide: str | None, *layers: Mixture) -> str | None:
        shared = SimpleNamespace(
            why_not_few=lambda layer: few, why_not_wide=lambda layer: wide,
            few_rows=lambda layer: rows_for(layer, is_wide=wide is None),
        )  # fmt: skip
        return kernels_of(layers, cast("Shared", shared))

    assert card(None, None) is None
    assert card(None, "codes", small, small) == "cuda for 1 to 8 rows, triton"
    assert card(None, None, large) == "cuda for 49 rows an expert, triton"
    assert card("slots", None, small) == "cuda for 49 rows an expert, triton (slots)"
    assert card("no nvcc", "no nvcc", small) == "triton (no nvcc)"


@pytest.mark.parametrize(
    ("form", "is_wide", "most"),
    [
        *((ScaledFormat("U4", (1, 128)), True, 7), (ScaledFormat("U4", (1, 128)), False, 32)),
        *((ScaledFormat("F8_E4M3", (128, 128)), True, 7), (ScaledFormat("F8_E4M3", (1, 0)), True, 32)),
        *((ScaledFormat("E2M1", (1, 32)), True, 32), (None, True, 8)),
    ],
)
def test_the_kernels_for_few_rows_end_where_the_others_begin(
    form: ScaledFormat | None, is_wide: bool, most: int
) -> None:
    layer = gpu_quantized_experts.layer_of(gpu_quantized_experts.SHAPES["qwen3-30b-a3b"], form)
    assert rows_for(layer, is_wide=is_wide) == range(1, most + 1)
    codes = form is not None and form.code in ("U4", "F8_E4M3") and form.block[1] > 0
    assert (least_pairs(layer) == 0.5) == codes


def in_torch(x: torch.Tensor, experts: Experts, room: Room, logits: torch.Tensor | None = None) -> torch.Tensor:
    """With our own choices, which must be as good as torch's: of nearly equal scores it may take others. logits: our
    own, without a bias."""
    layer, num_pairs = experts.layer, len(x) * experts.layer.routing.num_chosen
    if logits is None:
        logits = x.float() @ experts.router.float().T
    if experts.router_bias is not None:
        logits = logits + experts.router_bias.float()
    best, best_weights = choose(logits, experts.bias, layer.routing)
    ids, weights = (each[:num_pairs].view(best.shape) for each in (room.ids.long(), room.weights))
    is_same = (ids == best).all(1)
    assert is_same.float().mean() > 0.99
    torch.testing.assert_close(weights[is_same], best_weights[is_same], atol=1e-5, rtol=1e-4)
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(layer.num_own):
        rows, places = (ids == layer.first_expert + expert).nonzero(as_tuple=True)
        gate_up = x[rows].float() @ experts.gate_up.data[expert].float().T
        if experts.gate_up_bias is not None:
            gate_up += experts.gate_up_bias.view(layer.num_own, -1)[expert].float()
        y = gated(gate_up, layer.gate).to(x.dtype).float() @ experts.down.data[expert].float().T
        if experts.down_bias is not None:
            y += experts.down_bias.view(layer.num_own, -1)[expert].float()
        out[rows] += y * weights[rows, places, None]
    return out


def made(case: Case, dtype: torch.dtype) -> Experts:
    torch.manual_seed(0)
    count = case.routing.num_experts

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, device=DEVICE) * shape[-1] ** -0.5).to(dtype)

    def bias(size: int) -> torch.Tensor | None:
        return torch.randn(size, device=DEVICE).to(dtype) if case.has_biases else None

    return Experts(
        layer_of(case),
        *(4 * drawn(count, HIDDEN), bias(count), torch.randn(count, device=DEVICE) if case.has_bias else None),
        *(WeightStack.dense(drawn(count, 2 * INNER, HIDDEN)), bias(count * 2 * INNER)),
        *(WeightStack.dense(drawn(count, HIDDEN, INNER)), bias(count * HIDDEN)),
    )


def layer_of(case: Case) -> Mixture:
    return made_parameters.mixture(case.routing, HIDDEN, INNER, gate=case.gate)


def room_for(case: Case, dtype: torch.dtype) -> Room:
    room = Room.of([layer_of(case)], max(NUM_ROWS), dtype, DEVICE, HOPPER)
    assert room is not None
    return room


def some(stack: WeightStack, own: slice) -> WeightStack:
    return WeightStack.dense(stack.data[own])


@pytest.mark.parametrize("num_rows", [1, 9])
def test_ranks_with_some_of_the_experts_add_up(num_rows: int) -> None:
    case = CASES["gpt-oss"]
    whole, x = made(case, torch.float32), torch.randn(num_rows, HIDDEN, device=DEVICE)
    total = torch.zeros_like(x)
    for own in (slice(0, 2), slice(2, 6)):
        part = ranks_part(whole, own)
        mixture(x, total, total, part, room_for(case, torch.float32), chained=False)
    expected, room = torch.empty_like(x), room_for(case, torch.float32)
    mixture(x, None, expected, whole, room, chained=False)
    assert relative_error(total, expected) < 1e-5


def ranks_part(whole: Experts, own: slice) -> Experts:
    gate_up, down = (ExpertStack(stack.experts[own]) for stack in (whole.layer.gate_up, whole.layer.down))
    layer = replace(whole.layer, gate_up=gate_up, down=down, first_expert=own.start)
    count, biases = len(whole.layer.down.experts), (whole.gate_up_bias, whole.down_bias)
    gate_up_bias, down_bias = (None if each is None else each.view(count, -1)[own].flatten() for each in biases)
    return replace(
        whole, layer=layer, gate_up=some(whole.gate_up, own), down=some(whole.down, own), gate_up_bias=gate_up_bias,
        down_bias=down_bias,
    )  # fmt: skip


@pytest.mark.parametrize("average", [1, 8, 9, 24, 25, 48, 49, 500])
def test_every_tile_multiplies_lists_of_any_length(average: int) -> None:
    """Lists of none, one, and more pairs than a tile has."""
    case, room = CASES["mixtral"], room_for(CASES["mixtral"], torch.float32)
    experts = made(case, torch.float32)
    tile = choose_tile(average * 6, 6, is_gated=True)
    if not ON_GPU:
        tile = Tile(min(tile.pairs, 16), 32, 32, 1, 1)
    counts = [0, 1, tile.pairs, tile.pairs + 3, 0, 2]
    pairs = torch.randperm(sum(counts), device=DEVICE).int()
    room.counts.copy_(torch.tensor(counts, device=DEVICE))
    lists = pairs.split(counts)
    for expert, pair in enumerate(lists):
        room.order[expert, : len(pair)] = pair
    x = torch.randn(len(pairs), HIDDEN, device=DEVICE)
    out = torch.full((len(pairs), INNER), torch.nan, device=DEVICE)
    given = {"num_pairs": len(pairs), "rows_of": 1, "gate": SILU, "tile": tile, "chained": False}
    grouped_linear(x, experts.gate_up, None, out, room, **given)
    for expert, pair in enumerate(lists):
        expected = gated(x[pair.long()] @ experts.gate_up.data[expert].T, SILU)
        if len(pair):
            assert relative_error(out[pair.long()], expected) < 1e-5
