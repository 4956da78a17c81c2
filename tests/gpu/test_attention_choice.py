"""Which attention kernels a layer gets, for all kinds of GPUs; nothing is launched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from octavo.errors import ConfigError, KernelBuildError
from tests.gpu.device import DEVICE

from octavo.kernels import attention  # isort: skip
from octavo.kernels.attention import ModelAttention, _unreachable, choose  # isort: skip
from octavo.kernels.cuda import ledger  # isort: skip
from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.step import DECODES, DeviceStep, StepKind  # isort: skip
from octavo.kernels.cuda_cpp import attention as cuda_attention  # isort: skip
from octavo.kernels.cuda_cpp import attention_plan, one_sequence, shape  # isort: skip
from octavo.kernels.cuda_cpp.decode_attention import Kind  # isort: skip
from octavo.kernels.cuda_cpp import compile as nvcc  # isort: skip
from octavo.kernels.external import flash_attention  # isort: skip
from octavo.kernels.device import StepLimits  # isort: skip
from octavo.kernels.triton.attention.memory import AttentionMemory  # isort: skip
from tests.gpu.paged_batch import make_batch  # isort: skip

AMPERE, HOPPER, BLACKWELL = (GPU("a GPU", capability, 1 << 34, 1) for capability in ((8, 0), (9, 0), (10, 0)))
BATCH = make_batch([(0, 2)], head_dim=64)
LAYER, KV = BATCH.layer, BATCH.layout


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: None)


def test_cuda_kernels_come_first_where_nvcc_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(GPU, "is_interpreted", False)
    assert choose(LAYER, "bfloat16", KV, HOPPER, "auto") == ["cuda", "hopper", "triton"]
    assert choose(LAYER, "bfloat16", KV, AMPERE, "cuda") == ["cuda", "triton"]
    assert choose(replace(LAYER, head_dim=80), "bfloat16", KV, HOPPER, "auto") == ["triton"]
    assert choose(LAYER, "bfloat16", KV, HOPPER, "hopper") == ["hopper", "triton"]
    assert choose(LAYER, "bfloat16", KV, HOPPER, "triton") == ["triton"]


def test_codes_of_8_bits_are_read_by_some_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(GPU, "is_interpreted", False)
    codes, integers = replace(KV, dtype="fp8"), replace(KV, dtype="int8")
    assert choose(LAYER, "bfloat16", codes, HOPPER, "auto") == ["cuda", "hopper", "triton"]
    assert choose(replace(LAYER, window=64), "bfloat16", codes, HOPPER, "auto") == ["cuda", "triton"]
    assert choose(LAYER, "bfloat16", integers, HOPPER, "auto") == ["cuda", "triton"]
    assert choose(replace(LAYER, sinks=MagicMock()), "bfloat16", codes, HOPPER, "auto") == ["cuda", "triton"]
    assert choose(LAYER, "bfloat16", codes, HOPPER, "deterministic") == ["deterministic"]
    with pytest.raises(ConfigError, match=r"attention_backend is 'hopper', .* it reads no KV blocks in int8"):
        choose(LAYER, "bfloat16", integers, HOPPER, "hopper")


def test_cuda_kernels_leave_more_sequences_than_they_can_plan_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_attention, "MAX_SEQUENCES", 3)
    memory = AttentionMemory([LAYER], KV, StepLimits(4, 4, 64, 1), AMPERE, DEVICE)
    backend = cuda_attention.CudaAttention(memory)
    assert backend.decode(LAYER, None, otherwise=print) is print  # type: ignore[arg-type]
    assert not backend.decodes_alone


@pytest.mark.parametrize(
    ("heads", "kv_heads", "max_num_seqs", "expected"),
    [(32, 8, 1024, 16), (64, 8, 1024, 16), (16, 8, 4096, 16), (64, 8, 4096, 1), (8, 8, 64, 1), (64, 1, 1024, 1)],
)
def test_short_chunks_are_decodes_where_these_read_less(
    heads: int, kv_heads: int, max_num_seqs: int, expected: int
) -> None:
    """Not if each query head has a kv head of its own, nor if there are more parts of sequences than a plan sorts."""
    layer = replace(LAYER, num_heads=heads, num_kv_heads=kv_heads)
    assert shape.short_chunk([layer], max_num_seqs, 16) == expected
    assert shape.short_chunk([layer], max_num_seqs, 1) == 1
    assert shape.short_chunk([layer, replace(LAYER, num_heads=8, num_kv_heads=8)], max_num_seqs, 16) == 1


@pytest.mark.parametrize(
    ("lengths", "guesses", "short_chunk", "expected"),
    [
        ([16, 1, 3], 1, 16, (True, False, 16)),
        ([17, 1, 3], 1, 16, (True, True, 1)),
        ([17, 1, 3], 4, 16, (True, True, 16)),
        ([2, 3], 4, 1, (True, False, 4)),
        ([5, 1], 4, 1, (True, True, 4)),
        ([1, 1], 1, 16, (True, False, 1)),
        ([16, 2], 1, 1, (False, True, 1)),
    ],
)
def test_a_step_of_short_chunks_is_one_of_decodes(
    lengths: list[int], guesses: int, short_chunk: int, expected: tuple[bool, bool, int]
) -> None:
    kind = StepKind.of(make_batch([(40, length) for length in lengths]).step(guesses), short_chunk)
    assert (kind.has_decodes, kind.has_chunks, kind.decode_threshold) == expected


@pytest.mark.parametrize(
    ("heads", "short_chunk", "others", "gpu"),
    [(8, 16, 0, AMPERE), (8, 1, 0, AMPERE), (2, 16, 0, HOPPER), (8, 16, 1, AMPERE), (8, 16, 0, HOPPER)],
)
def test_cuda_kernels_take_what_the_ledger_says(
    heads: int, short_chunk: int, others: int, gpu: GPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that only say which ran; a layer that others take leaves short chunks to them, too."""
    ran: list[int] = []

    class Kernel:
        def __init__(self, kind: Kind, gpu: GPU) -> None:
            self.kind = kind

        def run(self, *given: object, transform: object, **rest: object) -> None:
            assert self.kind.is_fused == (transform is not None)
            ran.append(self.kind.shape.max_queries)

    monkeypatch.setattr(nvcc, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(GPU, "is_interpreted", False)
    monkeypatch.setattr(attention_plan, "Kernel", MagicMock())
    monkeypatch.setattr(cuda_attention, "DecodeAttention", Kernel)
    monkeypatch.setattr(one_sequence, "Kernel", MagicMock())
    monkeypatch.setattr(one_sequence.OneSequence, "run", lambda *given, **rest: ran.append(0))
    monkeypatch.setattr(Kind, "compile", lambda *given: b"")
    monkeypatch.setattr(one_sequence, "compile_kernel", lambda *given: b"")
    for module in (attention_plan, cuda_attention):
        monkeypatch.setattr(module, "compile_plan", lambda *given: (b"", 256))
    layers = [replace(LAYER, num_heads=heads, window=window) for window in (None, 40)]
    layers += [replace(LAYER, head_dim=80)] * others
    limits = StepLimits(64, 32, 64, 1, short_chunk)
    memory = AttentionMemory(layers, KV, limits, gpu, DEVICE)
    memory.pools.update(dict.fromkeys(layers))  # type: ignore[arg-type]
    backend = cuda_attention.CudaAttention(memory)
    entries = ledger._attention(layers, KV, limits, "bfloat16", gpu, "auto")
    assert backend.num_bytes == sum(entry.num_bytes for entry in entries if "CUDA C++" in entry.what)
    decode = backend.decode(layers[1], None, otherwise=lambda *step: ran.append(-1))
    for transform in (MagicMock(row_scales=None), MagicMock()):  # the last has scales that a projection left
        fused = backend.decode(layers[0], transform, otherwise=_unreachable)
        fused(step_of(DECODES), None, None)  # type: ignore[arg-type]
        fused(step_of(DECODES, num_seqs=2), None, None)  # type: ignore[arg-type]
    for threshold in (1, 4, 16):
        decode(step_of(replace(DECODES, decode_threshold=threshold)), None, None)  # type: ignore[arg-type]
    takes = heads == 8 and short_chunk == 16 and not others
    assert (backend.short_chunk, ran) == (
        16 if takes else 1,
        [0 if gpu is HOPPER else 1, *[1] * 4, -1, 16 if takes else -1],
    )


def test_kernels_that_cannot_be_built_are_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        longest_captured = None
        why_not = staticmethod(lambda *need: [])

        def __init__(self, memory: AttentionMemory) -> None:
            raise KernelBuildError("nvcc refused it")

    kept = attention.BACKENDS["triton"]
    monkeypatch.setattr(attention, "BACKENDS", {"cuda": lambda: Broken, "triton": kept})
    memory = AttentionMemory([LAYER], KV, StepLimits(4, 4, 64, 1), AMPERE, DEVICE)
    assert ModelAttention([LAYER], "bfloat16", KV, "auto", memory).names == ["triton"]
    assert "attention by 'cuda' is left out: nvcc refused it" in capsys.readouterr().err
    with pytest.raises(KernelBuildError, match="nvcc refused it"):
        ModelAttention([LAYER], "bfloat16", KV, "cuda", memory)


def test_cuda_kernels_say_all_that_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPU, "is_interpreted", False)
    with pytest.raises(ConfigError) as caught:
        choose(replace(LAYER, head_dim=80, num_heads=256), "float32", KV, AMPERE, "cuda")
    for reason in ("pip install 'octavo[cuda]'", "not in float32", "heads of 80", "128 query heads", "'auto'"):
        assert reason in str(caught.value)


def test_the_best_that_takes_a_layer_comes_first_and_the_plain_kernels_last() -> None:
    assert choose(LAYER, "bfloat16", KV, HOPPER, "auto") == ["hopper", "triton"]
    assert choose(LAYER, "bfloat16", KV, AMPERE, "auto") == ["triton"]
    assert choose(LAYER, "float32", KV, HOPPER, "auto") == ["triton"]
    assert choose(replace(LAYER, softcap=3.0), "bfloat16", KV, HOPPER, "auto") == ["triton"]
    assert choose(replace(LAYER, head_dim=96), "float16", KV, HOPPER, "auto") == ["triton"]


def test_one_phase_is_enough_to_take_a_layer() -> None:
    many = replace(LAYER, num_heads=32, num_kv_heads=1)
    for layer in (replace(LAYER, window=8), many):
        assert choose(layer, "bfloat16", KV, HOPPER, "auto") == ["hopper", "triton"]
    assert choose(replace(many, window=8), "bfloat16", KV, HOPPER, "auto") == ["triton"]


def test_latents_have_kernels_of_their_own() -> None:
    batch = make_batch([(0, 2)], num_kv_heads=1, head_dim=64, latent_rank=48)
    for gpu in (AMPERE, HOPPER):
        for layout in (batch.layout, replace(batch.layout, dtype="fp8")):
            assert choose(batch.layer, "bfloat16", layout, gpu, "auto") == ["latent"]
            assert choose(batch.layer, "bfloat16", layout, gpu, "deterministic") == ["deterministic"]
    for asked in ("triton", "hopper"):
        with pytest.raises(ConfigError, match="it attends to keys and values, and the model has latents"):
            choose(batch.layer, "bfloat16", batch.layout, HOPPER, asked)  # type: ignore[arg-type]


def test_a_library_serves_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_is_missing", lambda: False)
    assert choose(LAYER, "bfloat16", KV, HOPPER, "flash_attn_4") == ["flash_attn_4", "hopper", "triton"]
    assert choose(LAYER, "bfloat16", KV, BLACKWELL, "flash_attn_4") == ["flash_attn_4", "triton"]


def test_what_was_asked_for_and_cannot_serve_says_all_its_reasons() -> None:
    with pytest.raises(ConfigError) as caught:
        choose(replace(LAYER, window=8), "float32", KV, AMPERE, "flash_attn_4")
    assert str(caught.value).startswith("attention_backend is 'flash_attn_4', which cannot serve this model here: its ")
    for reason in ("pip install 'octavo[flash-attn]'", "this GPU has 8.0", "not in float32", "a window", "'auto'"):
        assert reason in str(caught.value)


def test_a_phase_goes_to_the_first_that_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a window, decodes go to the Hopper kernel and chunks to the plain one."""

    class Decodes:
        decodes_alone = decodes_in_parts = False
        short_chunk = 1
        longest_captured = 7
        plans = 0
        why_not = staticmethod(lambda *need: [])

        def __init__(self, memory: AttentionMemory) -> None: ...

        def plan(self, step: object) -> None:
            Decodes.plans += 1

        def decode(self, layer: object, transform: object, otherwise: object) -> object:
            return lambda *step: "ours"

        def prefill(self, layer: object, otherwise: object) -> object:
            return otherwise

    class All(Decodes):
        longest_captured = None  # type: ignore[assignment]
        short_chunk = 16

        def prefill(self, layer: object, otherwise: object) -> object:
            return lambda *step: "theirs"

    monkeypatch.setattr(attention, "BACKENDS", {"first": lambda: Decodes, "last": lambda: All})
    memory = AttentionMemory([LAYER], KV, StepLimits(4, 4, 64, 1), AMPERE, DEVICE)
    model = ModelAttention([LAYER], "bfloat16", KV, "triton", memory)
    assert (model.decode(LAYER)(None, None, None), model.prefill(LAYER)(None, None, None)) == ("ours", "theirs")  # type: ignore[arg-type, func-returns-value]
    model.plan(step_of(DECODES), is_fused=True)
    assert (Decodes.plans, model.longest_captured, model.short_chunk) == (2, 7, 16)


@pytest.mark.parametrize(
    ("kind", "is_fused", "num_plans"),
    [
        (DECODES, True, 0),
        (DECODES, False, 1),  # another op writes the cache, where the plain plan says
        (StepKind(has_decodes=True, has_chunks=True), True, 1),
        (StepKind(has_decodes=True, has_chunks=False, decode_threshold=4), True, 1),
    ],
)
def test_a_backend_that_decodes_alone_spares_the_other_plans(
    kind: StepKind, is_fused: bool, num_plans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {"alone": 0, "other": 0}

    def backend(name: str) -> object:
        def plan(step: object) -> None:
            plans[name] += 1

        members = {"decodes_alone": name == "alone", "longest_captured": None, "short_chunk": 1, "plan": plan}
        made = SimpleNamespace(**members)

        def build(memory: AttentionMemory) -> object:
            return made

        build.why_not = lambda *need: []  # type: ignore[attr-defined]
        return lambda: build

    monkeypatch.setattr(attention, "BACKENDS", {name: backend(name) for name in plans})
    memory = AttentionMemory([LAYER], KV, StepLimits(4, 4, 64, 1), AMPERE, DEVICE)
    ModelAttention([LAYER], "bfloat16", KV, "auto", memory).plan(step_of(kind), is_fused=is_fused)
    assert plans == {"alone": 1, "other": num_plans}


def step_of(kind: StepKind, num_seqs: int = 1) -> DeviceStep:
    nothing = torch.empty(0, dtype=torch.int32)
    return DeviceStep(nothing, nothing, nothing, torch.empty(num_seqs), nothing, (nothing,), kind)


@pytest.mark.parametrize("decodes_alone", [False, True])
def test_only_a_backend_that_decodes_in_parts_takes_room_for_them(
    decodes_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decodes of several new tokens, which the first backend leaves to the other, get the room when they come."""

    class Alone:
        decodes_in_parts = False
        longest_captured = None
        short_chunk = 1
        why_not = staticmethod(lambda *need: [])

        def __init__(self, memory: AttentionMemory) -> None:
            self.decodes_alone = decodes_alone

        def decode(self, layer: object, transform: object, otherwise: object) -> object:
            return (lambda *step: None) if decodes_alone else otherwise

    monkeypatch.setattr(attention, "BACKENDS", {"alone": lambda: Alone, "triton": attention.BACKENDS["triton"]})
    memory = AttentionMemory([LAYER], KV, StepLimits(4, 4, 64, 1), AMPERE, DEVICE)
    ModelAttention([LAYER], "bfloat16", KV, "auto", memory).decode(LAYER)
    assert (memory._workspace is None) == decodes_alone
    assert memory.workspace is memory.workspace
    assert memory.workspace.values.numel() == 4 * 32 * LAYER.num_heads * LAYER.head_dim
