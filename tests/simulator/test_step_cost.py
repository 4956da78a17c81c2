"""The shape of a step, and costs that are described by numbers."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.messages import StepPlan
from octavo.simulator.step_cost import DescribedCost, StepShape, described_cost, shape_of


def test_a_step_of_decodes_reads_its_contexts() -> None:
    plan = StepPlan(1, rows=[0, 1], num_computed_tokens=[9, 99], num_scheduled_tokens=[1, 1])
    assert shape_of(plan) == StepShape(decodes=2, context=110)


def test_a_chunk_visits_a_triangle_of_pairs_behind_what_is_computed() -> None:
    plan = StepPlan(1, rows=[0, 1, 2], num_computed_tokens=[9, 100, 0], num_scheduled_tokens=[1, 3, 2])
    pairs = sum(position + 1 for position in (100, 101, 102, 0, 1))
    assert shape_of(plan) == StepShape(decodes=1, context=10, prefill=5, prefill_work=pairs, chunks=2)


def test_a_described_cost_is_the_sum_of_its_parts() -> None:
    cost = described_cost("step_ms=6,token_us=20,context_ns=40,pair_ns=2,host_step_ms=1,host_seq_us=3")
    shape = StepShape(decodes=2, context=110, prefill=5, prefill_work=309)
    assert cost.device_seconds(shape) == pytest.approx(6e-3 + 7 * 20e-6 + 110 * 40e-9 + 309 * 2e-9)
    assert cost.host_seconds(StepShape(3, 99, 7, 9.0, chunks=1)) == pytest.approx(1e-3 + 12e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("step_ms", "'step_ms'"),
        ("speed=1", "'speed=1'"),
        ("step_ms=fast", "step_ms='fast'"),
        ("step_ms=-1", "step_ms='-1'"),
        ("step_ms=nan", "step_ms='nan'"),
        ("context_ns=3", "give step_ms or token_us"),
        ("", "''"),
    ],
)
def test_a_wrong_description_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace("'", ".")):
        described_cost(text)


@given(st.text(alphabet="step_mskenuc=,0123456789.einf-", max_size=40))
def test_any_description_is_a_cost_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(described_cost(text), DescribedCost)
