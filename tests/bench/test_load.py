"""When requests are sent, and that every process sends its share."""

import math
import statistics
import time
from itertools import pairwise

import pytest

from octavo.bench.datasets import BenchRequest, long_prompts
from octavo.bench.http_client import Target
from octavo.bench.load import LoadShare, RampUp, Sending, arrivals, shares
from octavo.bench.load_processes import processes_for
from octavo.bench.online import Form, Server, Timing
from octavo.errors import ConfigError, OctavoError
from octavo.observe.machine import num_cores
from tests.bench.fake_server import FakeServer

FORM = Form("openai", "/v1/completions", "m", ignore_eos=True)


def requests(num_requests: int, output_len: int = 3) -> list[BenchRequest]:
    return [BenchRequest((index, 1, 2), output_len, 1, 3) for index in range(num_requests)]


def test_arrivals_have_their_rate_and_their_burstiness() -> None:
    assert arrivals([math.inf] * 3, 1.0, 0) == [0.0, 0.0, 0.0]
    spread = {}
    for burstiness in (0.2, 1.0, 100.0):
        times = arrivals([50.0] * 2000, burstiness, seed=1)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert times[0] == 0.0
        assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.02)
        spread[burstiness] = statistics.stdev(gaps) * 50
    assert spread[1.0] == pytest.approx(1.0, abs=0.1)  # exponential gaps: deviation equals mean
    assert spread[0.2] == pytest.approx(math.sqrt(5), abs=0.4)
    assert spread[100.0] == pytest.approx(0.1, abs=0.02)
    assert arrivals([2.0] * 5, 1.0, 7) == arrivals([2.0] * 5, 1.0, 7) != arrivals([2.0] * 5, 1.0, 8)


def test_a_rate_ramps_up_by_amounts_or_by_factors() -> None:
    assert RampUp("linear", 1, 5).rates(5) == [1, 2, 3, 4, 5]
    assert RampUp("exponential", 1, 16).rates(5) == pytest.approx([1, 2, 4, 8, 16])
    assert RampUp("linear", 2, 4).rates(1) == [2]
    for strategy in ("linear", "exponential"):
        rates = RampUp(strategy, 10, 100).rates(4000)  # type: ignore[arg-type]
        times = arrivals(rates, 1.0, seed=3)
        for begin in range(0, 4000, 1000):  # each quarter takes the time that its rates give
            some = slice(begin, begin + 999)
            assert times[begin + 999] - times[begin] == pytest.approx(sum(1 / rate for rate in rates[some]), rel=0.1)


@pytest.mark.parametrize(("start", "end"), [(0, 5), (-1, 5), (1, math.inf), (math.nan, 5), (6, 5)])
def test_a_ramp_that_cannot_be_is_refused(start: float, end: float) -> None:
    with pytest.raises(ConfigError, match=r"--ramp-up-(start|end)-rps is"):
        RampUp("linear", start, end)


def test_a_load_is_dealt_without_loss() -> None:
    sendings = tuple(Sending(index, 0.0, b"", 0) for index in range(7))
    whole = LoadShare(Target("http://x", {}), sendings, max_concurrency=5, long_prompts=sendings[:1], long_every=1.0)
    parts = shares(whole, 3)
    assert sorted(one.index for part in parts for one in part.sendings) == list(range(7))
    assert [part.max_concurrency for part in parts] == [2, 2, 1]
    assert [len(part.long_prompts) for part in parts] == [1, 0, 0]


def test_as_many_processes_as_the_streams_need() -> None:
    assert processes_for(1) == processes_for(400) == 1
    assert processes_for(100_000) == max(1, num_cores() // 2)
    assert Timing(max_concurrency=2, num_procs=8).processes(100) == 2


@pytest.mark.parametrize("num_procs", [1, 2])
def test_never_more_at_once_than_allowed(num_procs: int) -> None:
    with FakeServer(first_s=0.02) as fake:
        server = Server(Target(fake.url, {}), FORM)
        ended: list[int] = []
        timing = Timing(max_concurrency=4, num_procs=num_procs)
        outcome = server.measure(requests(24), timing, ended.append)
        assert fake.most_open == 4
    assert sorted(answer.index for answer in outcome.completed) == list(range(24))
    assert sorted(prompt[0] for prompt in fake.prompts()) == list(range(24))
    if num_procs == 1:
        assert sum(ended) == 24
    assert all(answer.start >= outcome.sent.begin for answer in outcome.completed)
    assert all(answer.last <= outcome.sent.end for answer in outcome.completed)


def test_requests_go_out_at_their_times_whatever_the_server_does() -> None:
    with FakeServer(first_s=0.5) as fake:
        server = Server(Target(fake.url, {}), FORM)
        outcome = server.measure(requests(20), Timing(request_rate=40.0, num_procs=1), lambda _: None)
    starts = [answer.start - outcome.sent.begin for answer in sorted(outcome.completed, key=lambda one: one.index)]
    due = arrivals([40.0] * 20, 1.0, 0)
    assert all(-0.01 <= start - at < 0.3 for start, at in zip(starts, due, strict=True))


def test_long_prompts_go_beside_and_are_told_apart() -> None:
    with FakeServer(gap_s=0.05) as fake:
        server = Server(Target(fake.url, {}), FORM)
        timing = Timing(max_concurrency=1, long_every=0.1, num_procs=1)
        outcome = server.measure(requests(2, output_len=8), timing, lambda _: None, long_prompts(2, 50, seed=3))
    assert len(outcome.completed) == 2
    lens = [len(prompt) for prompt in fake.prompts()]
    assert lens.count(3) == 2
    assert lens.count(50) == len(outcome.sent.long_answers) >= 3
    assert fake.prompts().count(fake.prompts()[lens.index(50)]) >= 2  # the two long prompts alternate


def test_long_prompts_go_on_while_any_process_has_requests() -> None:
    with FakeServer(gap_s=0.1) as fake:
        server = Server(Target(fake.url, {}), FORM)
        timing = Timing(max_concurrency=2, long_every=0.2, num_procs=2)
        uneven = [BenchRequest((0, 1, 2), 1, 1, 3), BenchRequest((1, 1, 2), 16, 1, 3)]  # one for each process
        outcome = server.measure(uneven, timing, lambda _: None, long_prompts(2, 50, seed=3))
    assert len(outcome.completed) == 2
    assert len(outcome.sent.long_answers) >= 4


def test_a_client_process_that_dies_is_an_error() -> None:
    from octavo.bench.load_processes import run_load

    class Poison(Target):  # a target that cannot be unpickled in the child
        def __reduce__(self) -> tuple[object, ...]:
            return exit, (3,)

    share = LoadShare(Poison("http://127.0.0.1:9", {}), (Sending(0, 0.0, b"", 0),))
    begin = time.monotonic()
    with pytest.raises(OctavoError, match="ended with exit code 3"):
        run_load(share, 2, lambda _: None)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("field", ["request_rate", "burstiness", "long_every"])
def test_times_that_cannot_be_are_refused(field: str) -> None:
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} is"):
            Timing(**{field: value})  # type: ignore[arg-type]
