"""Latencies and rates, against values computed by hand."""

from array import array

import pytest

from octavo.bench.answer import Answer
from octavo.bench.load import Sent
from octavo.bench.online_report import Outcome, details, parse_goodput, summary, warnings
from octavo.errors import ConfigError

# Sent at 100.0: one fast request, one slow one of two sequences, one of a single token, one that failed.
FAST = Answer(0, 100.0, 100.1, 100.5, array("d", [0.1, 0.3]), 3, 10, 5, has_usage=True)
SLOW = Answer(1, 100.0, 101.0, 103.0, array("d", [2.0, 2.0]), 4, 20, 10, has_usage=True)
ONE = Answer(2, 103.5, 103.6, 103.6, array("d"), 1, 30, 1, has_usage=True)
FAILED = Answer(3, 100.0, 100.2, 100.2, array("d", [9.0]), 2, 40, 2, error="HTTP 500: no")
SENT = Sent([FAILED, ONE, FAST, SLOW], [], begin=100.0, end=104.0, cpu=1.0)
OUTCOME = Outcome(SENT, {0: 1, 1: 2, 2: 1, 3: 1})


def test_totals_and_rates() -> None:
    result = summary(OUTCOME, ["ttft"], [99], {})
    assert (result["completed"], result["failed"]) == (3, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (60, 16)
    assert result["request_throughput"] == 0.75
    assert result["output_throughput"] == 4.0
    assert result["total_token_throughput"] == 19.0
    assert result["request_goodput"] is None
    assert result["client_cpu_share"] == 0.25
    assert result["max_concurrent_requests"] == 2
    # SLOW's ten tokens come in pairs from 101 to 103, FAST's from 100.1 to 100.5: 5 of FAST's and a third of SLOW's 10
    assert result["max_output_tokens_per_s"] == pytest.approx(5 + 10 / 3)


def test_latencies() -> None:
    result = summary(OUTCOME, ["ttft", "tpot", "itl", "e2el"], [50, 99.9], {})
    assert result["mean_ttft_ms"] == pytest.approx((100 + 1000 + 100) / 3)
    assert result["median_ttft_ms"] == pytest.approx(100)
    assert result["mean_tpot_ms"] == pytest.approx((100 + 500) / 2)  # 0.4 s / 4, 2 s / (10 / 2 - 1)
    assert result["std_tpot_ms"] == pytest.approx(200)
    assert result["p50_itl_ms"] == pytest.approx(1150)
    assert result["mean_e2el_ms"] == pytest.approx((500 + 3000 + 100) / 3)
    assert result["p99.9_e2el_ms"] == pytest.approx(3000, rel=0.01)


def test_a_metric_that_nothing_has_is_null() -> None:
    outcome = Outcome(Sent([ONE], [], 103.0, 105.0), {2: 1})
    result = summary(outcome, ["tpot", "itl"], [99], {})
    assert result["mean_tpot_ms"] is None
    assert result["p99_itl_ms"] is None
    failed = summary(Outcome(Sent([FAILED], [], 100.0, 101.0), {3: 1}), ["ttft"], [99], {})
    assert failed["completed"] == 0
    assert failed["median_ttft_ms"] is None


@pytest.mark.parametrize(
    ("limits", "num_good"),
    [(["ttft:100.1"], 2), (["ttft:1000", "tpot:100.1"], 2), (["e2el:3000"], 3), (["e2el:499"], 1), (["tpot:50"], 1)],
)
def test_goodput_counts_requests_that_keep_every_limit(limits: list[str], num_good: int) -> None:
    result = summary(OUTCOME, [], [], parse_goodput(limits))
    assert result["request_goodput"] == num_good / 4.0


@pytest.mark.parametrize("limit", ["ttft", "itl:5", "ttft:x", "ttft:-1", "ttft:nan", ":5"])
def test_goodput_that_is_no_limit(limit: str) -> None:
    with pytest.raises(ConfigError, match=r"is not METRIC:MILLISECONDS"):
        parse_goodput([limit])


def test_details_are_in_the_order_of_the_requests() -> None:
    kept = details(OUTCOME)
    assert kept["input_lens"] == [10, 20, 30, 40]
    assert kept["start_times"] == [0.0, 0.0, 3.5, 0.0]
    assert kept["ttfts"] == pytest.approx([0.1, 1.0, 0.1, 0.0])
    assert kept["itls"][0] == [0.1, 0.3]
    assert kept["errors"] == ["", "", "", "HTTP 500: no"]


def test_long_prompts_are_counted_by_themselves() -> None:
    cut_off = Answer(4, 103.9)
    sent = Sent([FAST], [SLOW, FAILED, cut_off], begin=100.0, end=104.0)
    result = summary(Outcome(sent, {0: 1}, num_long_prompts=2), ["ttft"], [99], {})
    assert result["mean_ttft_ms"] == pytest.approx(100)
    long = result["long_prefill"]
    assert (long["completed"], long["failed"], long["cut_off"], long["repeated"]) == (1, 1, 1, 1)
    assert long["mean_ttft_ms"] == pytest.approx(1000)
    assert any("1 long prompts had been sent before" in line for line in warnings(result, OUTCOME.errors))


def test_what_makes_numbers_doubtful_is_said() -> None:
    busy = Sent([Answer(0, 100.0, 100.1, 100.2, num_pieces=3, num_output_tokens=3), FAILED], [], 100.0, 101.0, cpu=0.95)
    outcome = Outcome(busy, {0: 1, 3: 1})
    lines = warnings(summary(outcome, [], [], {}), outcome.errors)
    assert lines[0] == "1 x HTTP 500: no"
    assert "the client was busy 95% of the time" in lines[1]
    assert "sent no usage for 1 requests" in lines[2]
    known = Answer(0, 100.0, 100.1, 100.2, num_prompt_tokens=8, num_cached_tokens=6, has_usage=True)
    outcome = Outcome(Sent([known], [], 100.0, 101.0), {0: 1})
    (line,) = warnings(summary(outcome, [], [], {}), outcome.errors)
    assert line.startswith("75% of the prompt tokens came from the server's prefix cache")
