"""On a GPU: what `octavo plan` says of models of real sizes, beside what they take. Prints a table for each.

python -m pytest tests/gpu/test_plan.py -s
"""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli.doctor_memory import compare
from octavo.cli.memory_table import measured_table
from octavo.engine.assemble import engine_config
from tests.gpu.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU", allow_module_level=True)

CONFIGS = Path(__file__).parents[2] / "examples/configs"
#: allocated tensor by tensor, so the plan is exact but for what the allocator rounds up
EXACT = ("weights", "activations", "workspace", "rows")


@pytest.mark.parametrize("model", ["qwen3-0.6b", "llama-3.1-8b"])
@pytest.mark.parametrize("serves", [False, True])
def test_a_models_memory_is_as_planned(model: str, serves: bool) -> None:
    config = engine_config(model=str(CONFIGS / model), load_format="dummy")
    compared = compare(config, serves=serves)
    table = measured_table(compared.planned, compared.measured)
    print(f"\n{model}, {'server' if serves else 'offline'}", *table, sep="\n")
    for component in EXACT:
        assert compared.measured[component] == pytest.approx(compared.planned[component], rel=0.02), component
    assert sum(compared.measured.values()) == pytest.approx(sum(compared.planned.values()), rel=0.02)
