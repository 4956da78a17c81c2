"""On a GPU: what `octavo plan` says of models of real sizes, beside what they take. Prints a table for each.

    python -m pytest tests/gpu/test_plan.py -s

What is measured of a GPU as a whole is this process's only where no other one has memory there, as here. Beside others,
as under pytest-xdist, a test compares what the process has allocated itself, and is skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from octavo.cli.doctor_memory import compare
from octavo.cli.memory_table import measured_table
from octavo.engine.options import engine_config
from tests.gpu.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU", allow_module_level=True)

CONFIGS = Path(__file__).parents[2] / "examples/configs"
#: allocated tensor by tensor, so the plan is exact but for what the allocator rounds up
EXACT = ("weights", "activations", "workspace", "rows")
MOST_OF_ITS_OWN = 2 << 30  # that a process has beside what torch allocates: a context, kernels, graphs


@pytest.mark.parametrize("model", ["qwen3-0.6b", "llama-3.1-8b"])
@pytest.mark.parametrize("serves", [False, True])
def test_a_models_memory_is_as_planned(model: str, serves: bool) -> None:
    company = other_processes()
    config = engine_config(model=str(CONFIGS / model), load_format="dummy")
    compared = compare(config, serves=serves)
    table = measured_table(compared.planned, compared.measured)
    print(f"\n{model}, {'server' if serves else 'offline'}", *table, sep="\n")
    for component in EXACT:
        assert compared.measured[component] == pytest.approx(compared.planned[component], rel=0.02), component
    if company is not None:
        pytest.skip(f"{company}, so the whole was not compared: run python -m pytest tests/gpu/test_plan.py alone")
    assert sum(compared.measured.values()) == pytest.approx(sum(compared.planned.values()), rel=0.02)


def other_processes() -> str | None:
    """Who else may have memory on the GPU; None: nobody."""
    if (num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
        return f"{num_workers} workers of pytest-xdist share the GPU"
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    return f"others hold {others >> 30} GiB of the GPU" if others > MOST_OF_ITS_OWN else None
