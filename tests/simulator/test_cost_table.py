"""A measured cost between and beyond its points, and the files that hold it."""

import contextlib
import itertools
import json
import random
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.simulator.cost_table import CostTable, DecodePoint, MixedPoint, read_cost_table, spread_of
from octavo.simulator.measured_cost import MeasuredCost
from octavo.simulator.step_cost import StepShape
from tests.simulator.tables import made_table, seconds


@pytest.mark.parametrize("decodes", [1, 3, 16, 40, 100])
@pytest.mark.parametrize("context", [64, 777, 5000])
def test_a_step_of_decodes_costs_what_its_line_says(decodes: int, context: int) -> None:
    cost = MeasuredCost(made_table())
    assert cost.device_seconds(StepShape(decodes, decodes * context)) == pytest.approx(
        seconds(decodes, decodes * context), rel=1e-6
    )


@pytest.mark.parametrize("prefill", [8, 60, 512, 1000])
@pytest.mark.parametrize("decodes", [0, 5, 64, 90])
@pytest.mark.parametrize("start", [0, 3000])
def test_a_step_with_a_chunk_costs_the_sum_of_its_parts(prefill: int, decodes: int, start: int) -> None:
    work = prefill * (start + (prefill + 1) / 2)
    shape = StepShape(decodes, decodes * 500, prefill, work, 1)
    expected = seconds(decodes, decodes * 500, prefill, work)
    assert MeasuredCost(made_table()).device_seconds(shape) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("prefill", [20, 100, 300])
def test_two_chunks_cost_as_much_as_one_beside_a_decode_of_its_tokens(prefill: int) -> None:
    """A sequence adds its draw to a step, whether it computes one token or more."""
    cost = MeasuredCost(made_table())
    two = cost.device_seconds(StepShape(4, 0, prefill, 0.0, 2))
    assert two == pytest.approx(cost.device_seconds(StepShape(5, 0, prefill - 1, 0.0, 1)), rel=1e-3)


def test_a_chunk_of_a_size_between_tiles_costs_what_was_measured_there() -> None:
    table = made_table()
    steep = MixedPoint(200, 0, 0, 256, 0.5)
    cost = MeasuredCost(msgspec.structs.replace(table, mixed=[*table.mixed, steep]))
    assert cost.device_seconds(StepShape(0, 0, 200, 200 * 100.5, 1)) == pytest.approx(0.5)


def test_a_tiny_chunk_costs_no_less_than_its_decodes_alone() -> None:
    cost = MeasuredCost(made_table())
    alone = cost.device_seconds(StepShape(64, 0))
    assert cost.device_seconds(StepShape(64, 0, 1, 1.0, 1)) >= alone


def test_the_host_costs_by_sequence() -> None:
    assert MeasuredCost(made_table()).host_seconds(StepShape(10, 100)) == pytest.approx(2e-5)
    assert MeasuredCost(made_table()).host_seconds(StepShape(8, 100, 50, 0.0, 2)) == pytest.approx(2e-5 + 50e-8)


def test_a_table_with_one_point_of_each_kind_is_enough() -> None:
    table = made_table()
    cost = MeasuredCost(msgspec.structs.replace(table, decode=[DecodePoint(4, 64, 0.5)], mixed=table.mixed[:1]))
    assert cost.device_seconds(StepShape(4, 256)) == cost.device_seconds(StepShape(9, 9)) == 0.5


def test_steps_of_one_shape_differ_as_they_did_when_they_were_measured() -> None:
    ratios = [0.9] * 50 + [1.0] * 40 + [1.5] * 8 + [4.0] * 2
    table = msgspec.structs.replace(made_table(), spread=spread_of(ratios))
    shape, plain = StepShape(4, 400), MeasuredCost(made_table()).device_seconds(StepShape(4, 400))
    cost = MeasuredCost(table)
    taken = [cost.device_seconds(shape) / plain for _ in range(4000)]
    assert set(map(round, taken, itertools.repeat(6))) == {0.9, 1.0, 1.5, 4.0}
    assert statistics.mean(taken) == pytest.approx(statistics.mean(ratios), rel=0.03)
    again = MeasuredCost(table)
    assert [again.device_seconds(shape) / plain for _ in range(100)] == taken[:100]
    assert spread_of([]) == []


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "table.json")
    made_table().write(path)
    assert read_cost_table(path) == made_table()


def test_what_is_no_table_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for content in ("", "{}", "[1]", '{"format": "other"}', "\xff", "[" * 100_000):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"table\.json is not a cost table"):
            read_cost_table(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cost_table(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be written"):
        made_table().write(str(tmp_path))


VALUES = (0, -1, 1e300, 2**70, None, "x", True, [], {}, 0.5, [None] * 3)


@given(st.integers(0, 1_000_000))
def test_a_table_with_anything_in_it_works_or_is_refused(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    table = json.loads(msgspec.json.encode(made_table()))
    places = [table, table["engine"], *table["decode"][:3], *table["mixed"][:3]]
    for _ in range(draw.randint(1, 3)):
        place = draw.choice(places)
        place[draw.choice(list(place))] = draw.choice(VALUES)
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(table))
    with contextlib.suppress(ConfigError):
        read = read_cost_table(str(path))
        assert isinstance(read, CostTable)
        assert MeasuredCost(read).device_seconds(StepShape(3, 100, 50, 1000.0, 2)) >= 0.0
