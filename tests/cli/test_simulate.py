"""`octavo simulate` and `octavo bench cost`, as typed."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from octavo.cli import simulate
from octavo.cli.main import main, parser_of
from octavo.observe.flight_log import read_log
from octavo.observe.frames import frames
from octavo.simulator.cost_table import CostTable, read_cost_table
from tests.conftest import TinyFolder
from tests.simulator.tables import made_table

LOAD = ["--dataset-name", "random", "--random-input-len", "50", "--random-output-len", "9", "--num-prompts", "20"]
DESCRIBED = ["--cost", "step_ms=5", "--num-gpu-blocks-override", "200"]


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = str(tmp_path / "table.json")
    made_table().write(path)
    return path


def test_one_scenario_prints_a_row(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--cost", table, *LOAD, "--request-rate", "20"]) == 0
    head, row, note = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["TTFT", "p50"]
    assert note == "latencies in ms"
    assert 10 < float(row.split()[0]) < 50, "a prompt of 50 tokens costs 12 ms"


def test_values_are_compared_in_all_combinations(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, drawn = tmp_path / "result.json", tmp_path / "plot.html"
    compared = ["--compare", "block-size=16,32", "--compare", "scheduling_policy=fcfs,priority"]
    kept_in = ["--output-json", str(kept), "--plot", str(drawn)]
    assert main(["simulate", "--cost", table, *LOAD, *compared, *kept_in]) == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    found = [row.split()[:2] for row in rows]
    assert found == [["16", "fcfs"], ["16", "priority"], ["32", "fcfs"], ["32", "priority"]]
    results = json.loads(kept.read_text())["results"]
    assert [(one["block_size"], one["scheduling_policy"]) for one in results] == [tuple(one) for one in found]
    assert all(one["completed"] == 20 and one["p99_ttft_ms"] >= one["p50_ttft_ms"] > 0 for one in results)
    page = drawn.read_text()
    assert len(re.findall("<rect[^>]*><title>block_size", page)) == 3 * 4
    assert "block_size 32, scheduling_policy priority" in page


def test_ways_to_route_are_compared(tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    load = [*LOAD, "--num-prompts", "120", "--num-prefixes", "12", "--prefix-len", "320", "--request-rate", "80"]
    compared = ["-dp", "4", "--compare", "data-parallel-routing=prefix,work,turns", "--output-json", str(kept)]
    assert main(["simulate", *DESCRIBED, *load, *compared]) == 0
    prefix, work, turns = json.loads(kept.read_text())["results"]
    assert [one["completed"] for one in (prefix, work, turns)] == [120] * 3
    assert prefix["prefix_cache_hit_rate"] > 1.2 * max(work["prefix_cache_hit_rate"], turns["prefix_cache_hit_rate"])
    assert 0 < prefix["kv_cache_usage"] <= prefix["kv_cache_usage_peak"] <= 1


def test_a_smaller_budget_cuts_prompts_into_more_steps(table: str, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    compared = ["--compare", "max_num_batched_tokens=32,512", "--compare", "enable_prefix_caching=true,false"]
    shared = ["--prefix-len", "64", "--output-json", str(kept)]
    assert main(["simulate", "--cost", table, *LOAD, *shared, *compared]) == 0
    small_shared, small, large_shared, large = json.loads(kept.read_text())["results"]
    assert small["steps"] > large["steps"]
    assert small_shared["prefix_cache_hit_rate"] > 0.3 < large_shared["prefix_cache_hit_rate"]
    assert small["prefix_cache_hit_rate"] == large["prefix_cache_hit_rate"] == 0.0


def test_a_trace_is_simulated_and_recorded(tmp_path: Path) -> None:
    trace, log = tmp_path / "trace.jsonl", tmp_path / "run.log"
    lines = [{"arrival": number / 10, "prompt_len": 40, "output_len": 5} for number in range(6)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert main(["simulate", *DESCRIBED, "--trace", str(trace), "--record", str(log)]) == 0
    header, events = read_log(log)
    assert header.started.num_blocks == 199
    *_, last = frames(header.started, events)
    assert header.is_whole
    assert last.step > 6


def test_refused_requests_are_told_and_change_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["--dataset-name", "random", "--random-input-len", "5000", "--num-prompts", "3"]
    assert main(["simulate", *DESCRIBED, *long]) == 1
    assert "3 requests were refused, the first because request '0' has 5000 prompt tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--cost is needed"),
        (["--cost", "step_ms=5"], "num_gpu_blocks_override"),
        ([*DESCRIBED, "--compare", "speed=1"], "speed=1"),
        ([*DESCRIBED, "--compare", "block_size=17"], "block_size is '17'|block_size is 17"),
        ([*DESCRIBED, "--compare", "n=1,x"], "compare n"),
        ([*DESCRIBED, "--compare", "n=1", "--compare", "n=2"], "compare n is one too many"),
        ([*DESCRIBED, "--compare", "seed=" + ",".join(map(str, range(300)))], "256 scenarios"),
        ([*DESCRIBED, "--trace", "x", "--seed", "1"], "--seed draws a trace"),
        ([*DESCRIBED, "--random-input-len", "5"], "--dataset-name random"),
        ([*DESCRIBED, "--record", "x", "--compare", "n=1,2"], "--record x"),
        ([*DESCRIBED, "--plot", "x.gif"], "x.gif"),
        ([*DESCRIBED, "--data-parallel-size", "1025"], "data_parallel_size is 1025"),
        ([*DESCRIBED, "--data-parallel-size", "0"], "data_parallel_size is 0"),
        ([*DESCRIBED, "--data-parallel-routing", "best"], "best"),
        ([*DESCRIBED, "--compare", "data_parallel_routing=turns,best"], "data_parallel_routing is 'best'"),
        ([*DESCRIBED, "--record", "x", "--data-parallel-size", "2"], "--data-parallel-size asks for 2"),
        ([*DESCRIBED, "--max-model-len", "4k"], "hold 3184 tokens"),
        ([*DESCRIBED, "--jobs", "0"], "--jobs is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(one in line for one in named.split("|"))


VALUES = ("", "0", "1", "7", "-1", "1e9", "nan", "inf", "4k", "9" * 40, "true", "false", "x", "1,2", "a=b", "=", "é")
ROUTED = ("prefix", "work,turns", "best", "7")


def test_any_flags_run_or_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("octavo.simulator.scenario.run_all", lambda scenarios, *more: [one.run() for one in scenarios])
    parser = parser_of("simulate", simulate)
    flags = [flag for action in parser._actions for flag in action.option_strings if flag not in ("--debug", "--jobs")]
    draw = random.Random(5)
    codes = []
    for _ in range(60):
        words = [*DESCRIBED, *LOAD]
        for _ in range(draw.randint(1, 3)):
            flag, value = draw.choice(flags), draw.choice(VALUES)
            words += draw.choice([[flag, value], ["--compare", f"{flag.lstrip('-')}={value}"]])
        codes.append(main(["simulate", *words]))
        shown = capsys.readouterr().err.splitlines()
        assert all(line.startswith("octavo: ") for line in shown), (words, shown)
    for way, size in itertools.product(ROUTED, VALUES):
        codes.append(main(["simulate", *DESCRIBED, *LOAD, "-dp", size, "--compare", f"data_parallel_routing={way}"]))
        assert all(line.startswith("octavo: ") for line in capsys.readouterr().err.splitlines()), (way, size)
    assert {0, 2} <= set(codes) <= {0, 1, 2}


def test_steps_may_be_smaller_than_a_block(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    sizes = ["--max-num-seqs", "1", "--max-num-batched-tokens", "9", "--max-model-len", "128"]
    sizes += ["--num-gpu-blocks-override", "20", "--num-iters", "1", "--backend", "reference"]
    path = str(tmp_path / "table.json")
    assert main(["bench", "cost", str(tiny_folder("llama")), "-o", path, *sizes]) == 0
    table = read_cost_table(path)
    assert {point.prefill for point in table.mixed} == {2, 8, 9}
    assert len(table.spread) == 200
    assert table.spread == sorted(table.spread)


def test_the_costs_of_a_model_are_measured(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    path = str(tmp_path / "cost.json")
    sizes = ["--max-num-seqs", "2", "--max-num-batched-tokens", "16", "--num-gpu-blocks-override", "64"]
    sizes += ["--max-model-len", "128"]
    model = str(tiny_folder("llama"))
    assert main(["bench", "cost", model, "-o", path, "--num-iters", "1", "--backend", "reference", *sizes]) == 0
    table = read_cost_table(path)
    assert isinstance(table, CostTable)
    assert {point.batch for point in table.decode} == {1, 2}
    assert {point.prefill for point in table.mixed} == {2, 8, 16}
    seconds = [one.seconds for one in table.decode] + [one.seconds for one in table.mixed]
    assert min(seconds) > 0
    assert table.engine.num_blocks == 64
    assert main(["simulate", "--cost", path, *LOAD]) == 0
