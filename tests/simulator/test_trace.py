"""Traces from files, and generated ones."""

import contextlib
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.trace import TraceRequest, read_trace


def written(folder: Path, *lines: object) -> str:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return str(path)


def test_requests_come_by_arrival_and_turns_by_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"arrival": 2.0, "prompt_len": 5, "output_len": 1, "session": "s"},
        {"arrival": 1.0, "prompt_len": 6, "output_len": 1},
        "",
        {"prompt_len": 7, "output_len": 1, "session": "s", "gap": 3.0},
    )
    requests = read_trace(path)
    assert [(one.prompt_len, one.arrival, one.is_last) for one in requests] == [
        (6, 1.0, True),
        (5, 2.0, False),
        (7, 2.0, True),
    ]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"prompt_len": 5, "output_len": 1}, 'has no "arrival"'),
        ({"arrival": 0, "prompt_len": 0, "output_len": 1}, "prompt_len"),
        ({"arrival": 0, "prompt_len": 5, "output_len": 1, "speed": 2}, "speed"),
        ({"arrival": -1, "prompt_len": 5, "output_len": 1}, "arrival"),
        ({"arrival": 0, "prompt_len": 5, "output_len": 1, "prefix": "a", "prefix_len": 9}, '"prefix_len" 9'),
        ({"arrival": 0, "prompt_len": 5, "output_len": 1, "prefix": "a"}, "give both"),
        ({"arrival": 0, "prompt_len": 5, "output_len": 9, "max_tokens": 8}, '"max_tokens" 8'),
        ("{", "malformed|truncated"),
        ('"' + "x" * 70_000 + '"', "more than 65,536 bytes"),
    ],
)
def test_a_wrong_line_is_refused_by_number(tmp_path: Path, line: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        read_trace(written(tmp_path, {"arrival": 0, "prompt_len": 5, "output_len": 1}, line))
    assert "line 2" in str(caught.value)


def test_an_empty_file_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no request"):
        read_trace(written(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(str(tmp_path))


VALUES = (0, -1, 1, 7, 2**70, 1e308, math.nan, None, "x", True, [], {})


@given(st.integers(0, 1_000_000))
def test_a_line_with_anything_in_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    line = {"arrival": 0.0, "prompt_len": 5, "output_len": 2, "session": "s", "gap": 1.0, "n": 1, "priority": 0}
    for _ in range(draw.randint(1, 3)):
        line[draw.choice([*line, "max_tokens", "prefix", "prefix_len", "other"])] = draw.choice(VALUES)
    text = json.dumps(line)
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text(text[: draw.randint(0, len(text))] if draw.random() < 0.3 else text)
    with contextlib.suppress(ConfigError):
        assert all(isinstance(one, TraceRequest) for one in read_trace(str(path)))


def test_a_poisson_process_has_the_asked_rate() -> None:
    requests = list(TraceRecipe(num_prompts=2000, request_rate=50.0).requests())
    times = [one.arrival or 0.0 for one in requests]
    gaps = [after - before for before, after in pairwise(times)]
    assert times == sorted(times)
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.02)
    assert mean(gap * gap for gap in gaps) == pytest.approx(2 / 50**2, rel=0.2)  # of an exponential distribution
    assert 120 < mean(one.prompt_len for one in requests) < 190


def test_bursts_arrive_together() -> None:
    times = [one.arrival for one in TraceRecipe(num_prompts=10, request_rate=1.0, burst_size=4).requests()]
    assert [times.count(time) for time in dict.fromkeys(times)] == [4, 4, 2]


def test_a_conversation_begins_with_all_that_was_said() -> None:
    recipe = TraceRecipe(
        num_prompts=7, turns=3, request_rate=1.0, dataset="random", random_input_len=10, random_output_len=4
    )
    requests = list(recipe.requests())
    assert [one.prompt_len for one in requests] == [10, 24, 38, 10, 24, 38, 10]
    assert [one.is_last for one in requests] == [False, False, True] * 2 + [True]
    assert [one.arrival is None for one in requests] == [False, True, True] * 2 + [False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_prompts": 0},
        {"request_rate": 0.0},
        {"request_rate": math.nan},
        {"burstiness": 0.0},
        {"think_time": -1.0},
        {"random_range_ratio": 1.0},
        {"dataset": "other"},
        {"turns": 0},
        {"prefix_len": -1},
    ],
)
def test_a_wrong_recipe_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TraceRecipe(**wrong)
