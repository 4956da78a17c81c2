"""The router: each engine's work is counted exactly, prompts go where their beginning is, and memory is bounded."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import DataParallelRouting
from octavo.processes import router as room
from octavo.processes.load_report import INTERVAL_S, LoadReport
from octavo.processes.router import DECODE_COST, FIRST_OUTPUT_LEN, Router, Ticket, prompt_pieces
from octavo.processes.transport import AddRequest, Load, decode_down, encode, pack_request
from octavo.request import Request
from tests.simulate import make_request

CACHE = 100_000


def up(num_engines: int, num_cache_tokens: int = CACHE, routing: DataParallelRouting = "prefix") -> Router:
    router = Router(num_engines, routing)
    for engine in range(num_engines):
        router.goes_up(engine, num_cache_tokens)
    return router


def tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(50_000), k=length)


def asked(prompt: list[int], rank: int | None = None, **params: Any) -> Request:
    request = make_request("a", prompt, **params)
    request.data_parallel_rank = rank
    return request


def send(router: Router, request: Request) -> Ticket:
    ticket = router.choose(prompt_pieces(request), request)
    assert ticket is not None
    return ticket


# Pieces


def test_a_long_prompt_has_few_pieces_that_cover_nearly_all_of_it() -> None:
    ends = [piece.end for piece in prompt_pieces(asked(tokens(0, 100_000)))]
    assert ends[:9] == [16, 32, 48, 64, 80, 96, 112, 128, 144]
    assert len(ends) < 90
    assert ends[-1] > 90_000


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 600))
def test_prompts_share_the_pieces_of_what_they_share(common: int, first: int, second: int) -> None:
    one, other = (prompt_pieces(asked(tokens(0, common) + tokens(seed, n))) for seed, n in ((1, first), (2, second)))
    shared = set(one) & set(other)
    assert (
        shared == {piece for piece in one if piece.end <= common} == {piece for piece in other if piece.end <= common}
    )
    assert [piece.end for piece in one] == sorted({piece.end for piece in one})


def test_a_salt_shares_nothing() -> None:
    one, other = (prompt_pieces(make_request("a", tokens(0, 64), cache_salt=salt)) for salt in (None, "b"))
    assert len(one) == len(other) == 4
    assert not set(one) & set(other)


# Where a request goes


def test_by_work_alone_a_prompt_leaves_its_beginning_for_an_idler_engine() -> None:
    router = up(3, routing="work")
    first = [send(router, asked(tokens(place, 200 + 100 * place))).engine for place in range(3)]
    assert first == [0, 1, 2]
    again = send(router, asked(tokens(2, 400)))
    assert again.engine == 0, "it has the least work, and engine 2 the prompt"
    assert again.prompt_work == 400


def test_in_turn_each_engine_gets_as_many_and_one_that_is_down_none() -> None:
    router = up(4, routing="turns")
    router.goes_down(2)
    sent = [send(router, asked(tokens(0, 50 * place + 50))).engine for place in range(6)]
    assert sent == [0, 1, 3, 0, 1, 3]
    assert send(router, asked(tokens(9, 20), rank=1)).engine == 1
    for engine in (0, 1, 3):
        router.goes_down(engine)
    assert router.choose([], asked(tokens(0, 20))) is None


def test_prompts_that_share_nothing_are_spread_evenly() -> None:
    router = up(4)
    counts = Counter(send(router, asked(tokens(place, 200))).engine for place in range(100))
    assert counts == {0: 25, 1: 25, 2: 25, 3: 25}


def test_requests_one_after_another_take_turns() -> None:
    router = up(3)
    engines = []
    for place in range(6):
        ticket = send(router, asked(tokens(place, 8)))
        router.ended(ticket, 5)
        engines.append(ticket.engine)
    assert engines == [0, 1, 2, 0, 1, 2]


def test_large_requests_weigh_more_than_small_ones() -> None:
    router = up(2)
    large = send(router, asked(tokens(0, 8000), max_tokens=1))
    assert {send(router, asked(tokens(place, 100), max_tokens=1)).engine for place in range(1, 20)} == {
        1 - large.engine
    }


def test_a_conversation_stays_where_its_beginning_is_until_that_engine_is_much_busier() -> None:
    router, talk = up(4), tokens(0, 300)
    home = send(router, asked(talk))
    router.ended(home, 20)
    for turn in range(1, 6):
        talk = talk + tokens(turn, 90)
        for place in range(4):  # others come meanwhile
            router.ended(send(router, asked(tokens(100 * turn + place, 50))), 20)
        ticket = send(router, asked(talk))
        assert ticket.engine == home.engine
        assert ticket.prompt_work < 90 + len(talk) // 8 + 16, "most of it is there"
        router.ended(ticket, 20)
    for _ in range(40):
        send(router, asked(tokens(7, 20), rank=home.engine))
    assert send(router, asked(talk)).engine != home.engine


def test_an_engine_s_first_load_is_what_it_computes() -> None:
    router = up(2)
    ticket = send(router, asked(tokens(0, 160), n=3, max_tokens=10))
    assert (ticket.prompt_work, ticket.output_work) == (160, 3 * 10 * DECODE_COST)
    again = send(router, asked(tokens(0, 160), rank=ticket.engine, max_tokens=1000))
    assert (again.prompt_work, again.output_work) == (1, (FIRST_OUTPUT_LEN + 1) * DECODE_COST)
    assert router.work(ticket.engine) == ticket.work + again.work
    router.started(ticket)
    assert router.work(ticket.engine) == ticket.output_work + again.work
    assert ticket.prompt_work == 0


def test_expected_outputs_follow_those_that_ended() -> None:
    router = up(1)
    for _ in range(200):
        router.ended(send(router, asked(tokens(0, 8), max_tokens=5000)), 1000)
    assert send(router, asked(tokens(0, 8), max_tokens=5000)).output_work == pytest.approx(1000 * DECODE_COST, rel=0.02)


ACTS = ("send", "send", "rank", "start", "end", "down", "up", "others")


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 10**6))))
def test_work_is_what_unfinished_tickets_have_left(acts: list[tuple[str, int]]) -> None:
    """Whatever happens, in any order; and only an engine that serves is ever chosen."""
    router, serving = up(3, 500), {0, 1, 2}
    tickets: list[Ticket] = []
    told, others = [0, 0, 0], [0, 0, 0]
    for act, number in acts:
        engine = number % 3
        if act in ("send", "rank"):
            request = asked(tokens(number % 7, number % 300 + 1), engine if act == "rank" else None)
            ticket = router.choose(prompt_pieces(request), request)
            assert (ticket is None) == (not serving if act == "send" else engine not in serving)
            if ticket is not None:
                assert ticket.engine in serving
                assert act == "send" or ticket.engine == engine
                tickets.append(ticket)
                others[ticket.engine] += ticket.work * sum(told) // sum(one.work for one in tickets)
        elif act == "start" and tickets:
            router.started(tickets[number % len(tickets)])
        elif act == "end" and tickets:
            router.ended(tickets.pop(number % len(tickets)), number % 50)
        elif act == "down":
            for ticket in tickets:
                if ticket.engine == engine:
                    router.ended(ticket)
            tickets = [one for one in tickets if one.engine != engine]
            router.goes_down(engine)
            serving.discard(engine)
            told[engine] = others[engine] = 0
        elif act == "up" and engine not in serving:
            router.goes_up(engine, 500)
            serving.add(engine)
        elif act == "others" and engine in serving:
            router.others_work(engine, number)
            told[engine] = others[engine] = number
        for one in range(3):
            assert router.work(one) == others[one] + sum(ticket.work for ticket in tickets if ticket.engine == one)
    for ticket in tickets:
        router.ended(ticket)
    least = router._least_loaded()
    assert least == min(serving, key=lambda one: (others[one], router._turns[one]), default=None)


def test_what_is_remembered_is_no_more_than_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    router = up(2, 4096)
    for place in range(200):
        router.ended(send(router, asked(tokens(place, 500))), 1)
    assert [holding._num_tokens <= 4096 for holding in router._holdings] == [True, True]
    assert sum(len(holders) for holders in router._holders.values()) == sum(len(one._lens) for one in router._holdings)
    early, late = send(router, asked(tokens(0, 500))), send(router, asked(tokens(199, 500)))
    assert early.prompt_work == 500
    assert late.prompt_work < 60
    monkeypatch.setattr(room, "MAX_PIECES", 10)
    send(router, asked(tokens(300, 4000), rank=0))
    assert len(router._holdings[0]._lens) == 10
    router.goes_down(0)
    router.goes_down(1)
    assert router._holders == {}
    assert len(router._by_work) < 100


def test_without_a_prefix_cache_nothing_is_remembered() -> None:
    router = up(2, 0)
    send(router, asked(tokens(0, 500)))
    assert router._holders == {}


def test_a_thousand_engines_with_the_same_beginning_are_compared_in_no_time() -> None:
    router, system = up(1000), tokens(0, 500)
    counts = Counter(send(router, asked(system + tokens(place, 40))).engine for place in range(3000))
    assert max(counts.values()) <= 6, "the beginning is shared by all, and decides nothing"
    assert len(counts) > 900


# What front ends learn of each other


class _Told:
    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[bytes, Load]] = []
        self.report = LoadReport(lambda to, load: self.sent.append((to, load)), lambda: self.now, is_needed=True)

    def take(self) -> dict[bytes, Load]:
        self.report.send_changes()
        taken, self.sent = dict(self.sent), []
        return taken


def message(seed: int, work: int) -> AddRequest:
    request = asked(tokens(seed, 100))
    return pack_request(1, request, None, work, prompt_pieces(request))


def test_each_front_end_is_told_of_the_others_work_and_prompts() -> None:
    told = _Told()
    told.report.front_end_came(b"a")
    told.report.added(b"a", message(0, 300))
    assert told.take() == {}, "there is nobody else"
    told.report.front_end_came(b"b")
    told.report.added(b"b", message(1, 50))
    loads = told.take()
    assert {name: load.work for name, load in loads.items()} == {b"a": 50, b"b": 300}
    assert loads[b"b"].prompts == [prompt_pieces(asked(tokens(0, 100)))]
    assert decode_down(encode(loads[b"a"])) == loads[b"a"]
    told.report.ended(b"a", 300)
    assert told.take() == {}, "the interval is not over"
    told.now += INTERVAL_S
    assert told.report.seconds_left == 0
    assert told.take()[b"b"] == Load(0, [])
    told.now += INTERVAL_S
    assert told.take() == {}, "nothing has changed"
    told.report.front_end_gone(b"b")
    told.report.ended(b"b", 50)
    told.now += INTERVAL_S
    assert told.take() == {}


def test_a_router_follows_what_it_is_told_to_the_engine_that_holds_a_prompt() -> None:
    mine = up(2)
    prompt = tokens(0, 200)
    other = up(2)
    other.ended(send(other, asked([1])), 1)
    theirs = send(other, asked(prompt))
    mine.others_work(theirs.engine, theirs.work)
    mine.sees(theirs.engine, prompt_pieces(asked(prompt)))
    assert send(mine, asked([*prompt, 5])).engine != theirs.engine, "it has a request more to compute"
    mine = up(2)
    mine.sees(theirs.engine, prompt_pieces(asked(prompt)))
    assert send(mine, asked([*prompt, 5])).engine == theirs.engine


@pytest.mark.parametrize(("num_engines", "number", "seconds"), [(2, 1600, 1.5), (4, 1600, 1.5), (2, 24, 0.05)])
def test_many_front_ends_do_not_all_run_to_the_engine_that_was_last_idlest(
    num_engines: int, number: int, seconds: float
) -> None:
    routers = [Router(num_engines, first=index % num_engines) for index in range(12)]
    for router in routers:
        for engine in range(num_engines):
            router.goes_up(engine, CACHE)
    work, sent = [Counter[int]() for _ in routers], Counter[int]()
    told_at, rng = [INTERVAL_S * (engine + 1) / num_engines for engine in range(num_engines)], random.Random(0)
    for turn in range(number):
        for engine, at in enumerate(told_at):
            if turn * seconds / number >= at:
                told_at[engine] += INTERVAL_S
                total = sum(own[engine] for own in work)
                for router, own in zip(routers, work, strict=True):
                    router.others_work(engine, total - own[engine])
        place = rng.randrange(12)
        ticket = send(routers[place], asked([turn]))
        work[place][ticket.engine] += ticket.work
        sent[ticket.engine] += 1
    assert max(sent.values()) - min(sent.values()) <= 6


def test_what_others_may_have_sent_counts_until_the_next_report() -> None:
    router = up(2)
    router.others_work(0, 600)
    router.others_work(1, 600)
    first = send(router, asked([1]))
    assert router.work(first.engine) == 600 + first.work + first.work * 1200 // first.work
    router.others_work(first.engine, 700)
    assert router.work(first.engine) == 700 + first.work
    router.ended(first)
    assert router.work(first.engine) == 700


def test_a_report_is_bounded() -> None:
    told = _Told()
    told.report.front_end_came(b"a")
    told.report.front_end_came(b"b")
    for seed in range(300):
        told.report.added(b"a", message(seed, 1))
    load = told.take()[b"b"]
    assert load.work == 300
    assert len(load.prompts) == 256
    assert load.prompts[-1] == prompt_pieces(asked(tokens(299, 100)))
