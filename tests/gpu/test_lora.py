"""Adapters on a GPU, and under Triton's interpreter: the kernels against torch, and a whole engine against the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyFolder
from tests.gpu.device import DEVICE
from tests.lora.written_adapters import LINEARS, write_adapter

from octavo import LLM, LoRARequest, SamplingParams  # isort: skip
from octavo.kernels.triton.linear import adapters  # isort: skip
from octavo.kernels.triton.linear.adapter_rows import RowLists  # isort: skip
from octavo.kernels.triton.linear.adapters import Tiling  # isort: skip
from octavo.kernels.triton.linear.slot_matrices import SlotMatrices  # isort: skip
from octavo.kernels.triton.linear.few_adapted_rows import expand_rows, shrink_rows  # isort: skip
from octavo.kernels.cuda.sizes import most_tiles, shrink_parts  # isort: skip

NUM_SLOTS, RANK, DEPTH = 5, 12, 600
PROMPTS = [[5, 9, 2], [*range(3, 23)], [101, 4], [60]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)


def lists_of(slots: torch.Tensor, tile: int) -> RowLists:
    shapes = (NUM_SLOTS + 2,), (NUM_SLOTS + 1, len(slots)), (2, most_tiles(len(slots), 16, NUM_SLOTS))
    lists = RowLists(slots, *(torch.full(shape, 99, dtype=torch.int32, device=DEVICE) for shape in shapes))
    lists.make(len(slots), tile, chained=False)
    return lists


@pytest.mark.parametrize("ends", [(150,), (96, 160, 224), (72, 144)])
@pytest.mark.parametrize("tiling", [None, Tiling(16, 4), Tiling(64, 1)])
def test_each_row_gets_what_its_adapter_adds(ends: tuple[int, ...], tiling: Tiling | None) -> None:
    """Rows without an adapter, a slot without rows, and one that leaves the module as it is. None: row by row."""
    generator = torch.Generator().manual_seed(1)
    num_rows, parts = 75 if tiling is None else 300, len(ends)
    slots = torch.tensor([-1, 0, 1, 3], dtype=torch.int32)[torch.randint(4, (num_rows,), generator=generator)]
    x, y = (torch.randn(num_rows, width, generator=generator) for width in (DEPTH, ends[-1]))
    a = torch.randn(NUM_SLOTS, parts * RANK, DEPTH, generator=generator)
    b = torch.randn(NUM_SLOTS, ends[-1], RANK, generator=generator)
    ranks = torch.tensor([RANK, 0, RANK, RANK, RANK], dtype=torch.int32)
    expected = y.clone()
    for slot in (0, 3):
        own = slots == slot
        h = (x[own] @ a[slot].T).chunk(parts, 1)
        pieces = torch.tensor_split(b[slot], ends[:-1])
        expected[own] += torch.cat([part @ piece.T for piece, part in zip(pieces, h, strict=True)], 1)
    moved = [each.to(DEVICE) for each in (x, y, a, b, ranks, slots)]
    module = SlotMatrices(moved[2], moved[3], moved[4], ends)
    split = shrink_parts(num_rows, DEPTH) if tiling is None else tiling.split
    shrunk = torch.full((split * num_rows * parts * RANK,), float("nan"), device=DEVICE)
    out = torch.full((num_rows, ends[-1] // 2), float("nan"), device=DEVICE)
    for gated in (("silu", out), None) if len(ends) < 3 else (None,):
        if tiling is None:
            shrink_rows(moved[0], module, moved[5], shrunk, chained=False)
            expand_rows(shrunk, split, module, moved[5], moved[1], gated=gated, chained=False)
        else:
            lists = lists_of(moved[5], tiling.rows)
            adapters.shrink(moved[0], module, lists, shrunk, tiling, chained=False)
            adapters.expand(shrunk, module, lists, moved[1], tiling, gated=gated, chained=False)
    torch.testing.assert_close(moved[1].cpu(), expected, rtol=1e-4, atol=1e-3)
    if len(ends) < 3:
        gate, up = expected.chunk(2, 1)
        torch.testing.assert_close(out.cpu(), torch.nn.functional.silu(gate) * up, rtol=1e-4, atol=1e-2)


def test_a_table_adds_its_tokens_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    slots = torch.tensor([1, -1, 1, 0, 4], dtype=torch.int32)
    ids = torch.tensor([3, 4, 99, 0, -1], dtype=torch.int32)  # one that another rank has, and a draw that failed
    a = torch.randn(NUM_SLOTS, 20, RANK, generator=generator)
    b = torch.randn(NUM_SLOTS, 40, RANK, generator=generator)
    expected = torch.stack([b[1] @ a[1, 3], torch.zeros(40), torch.zeros(40), b[0] @ a[0, 0], b[4] @ a[4, 0]])
    ranks = torch.full((NUM_SLOTS,), RANK, dtype=torch.int32)
    module = SlotMatrices(a.to(DEVICE), b.to(DEVICE), ranks.to(DEVICE), (40,))
    y, shrunk = torch.zeros(2, 5, 40, device=DEVICE), torch.empty(5 * RANK, device=DEVICE)
    adapters.shrink_table(ids.to(DEVICE), module, slots.to(DEVICE), shrunk, 0, chained=False)
    adapters.expand(shrunk, module, lists_of(slots.to(DEVICE), 16), y[0], Tiling(16, 1), chained=False)
    expand_rows(shrunk, 1, module, slots.to(DEVICE), y[1], chained=False)
    torch.testing.assert_close(y.cpu(), torch.stack([expected] * 2), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("interpreter")
def test_an_engine_gives_the_hosts_tokens(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    """Chunks beside decodes, forks, none, and adapters that take turns in two slots."""
    model = tiny_folder("llama", num_hidden_layers=2)
    told: list[dict[str, Any]] = [
        {"targets": LINEARS}, {"targets": ("embed_tokens", "lm_head", "q_proj"), "rank": 3}, {"targets": ("down_proj",)}
    ]  # fmt: skip
    folders = [write_adapter(tmp_path / f"a{seed}", model, seed=seed, **one) for seed, one in enumerate(told)]
    requests = [None, *(LoRARequest(folder.name, seed + 1, str(folder)) for seed, folder in enumerate(folders))]
    params = [GREEDY, GREEDY.replace(n=2), GREEDY, GREEDY]
    answers = []
    for backend in ("reference", "triton"):
        with LLM(
            str(model), backend=backend, dtype="float32", max_model_len=64, max_num_seqs=8, num_gpu_blocks_override=40,
            check_invariants=True, skip_tokenizer_init=True, max_num_batched_tokens=24,
            enable_lora=True, max_loras=2, max_lora_rank=5,
        ) as llm:  # fmt: skip
            outputs = llm.generate(PROMPTS, params, False, lora_request=requests)
            answers.append([[one.token_ids for one in output.outputs] for output in outputs])
    assert answers[0] == answers[1]
