"""The router over simulated engines: conversations find their beginnings, and no engine is left idle."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from octavo.config import SchedulerConfig
from octavo.observe.event_log import EventLog
from octavo.processes.router import Router, Ticket, prompt_pieces
from octavo.request import Request
from octavo.simulator.engine import FIRST_PROMPT_TOKEN, SimulatedEngine, SimulatedSizes
from octavo.simulator.step_cost import described_cost
from tests.simulate import make_request

NUM_ENGINES, NUM_TALKS, NUM_TURNS = 4, 24, 4
SIZES = SimulatedSizes(
    num_blocks=2000, block_size=16, max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=512, is_overlapped=True
)
#: sends a request to an engine -> its number, and the router's ticket
Choose = Callable[[Request], tuple[int, Ticket | None]]


@dataclass
class Served:
    """hit_rate: of prompt tokens. seconds: until the last answer, all rounds together. idle: the part of all engines'
    time in which they waited for the last one."""

    hit_rate: float
    seconds: float
    idle: float


def serve(choose: Choose, ended: Callable[[Ticket], None]) -> Served:
    """Rounds of conversations: in each, every one gets an answer and goes on."""
    cost = described_cost("step_ms=4,token_us=20,context_ns=20")
    engines = [SimulatedEngine(SIZES, SchedulerConfig(), cost, EventLog(0)) for _ in range(NUM_ENGINES)]
    dice = random.Random(1)

    def words(num: int) -> list[int]:
        return [dice.randrange(FIRST_PROMPT_TOKEN, 30_000) for _ in range(num)]

    talks = {place: words(dice.randrange(100, 400)) for place in range(NUM_TALKS)}
    num_cached = num_prompt = 0
    busy = 0.0
    for turn in range(NUM_TURNS):
        begin, sent = max(engine.now for engine in engines), []
        for engine in engines:
            engine.wait_until(begin)
        for place in dice.sample(sorted(talks), NUM_TALKS):
            request = make_request(f"{place}-{turn}", talks[place], max_tokens=dice.randrange(10, 60))
            number, ticket = choose(request)
            engines[number].add(request)
            sent.append((place, request, ticket))
        for engine in engines:
            while engine.has_unfinished:
                engine.step()
            busy += engine.now - begin
        for place, request, ticket in sent:
            num_cached += request.num_cached_tokens
            num_prompt += request.num_prompt_tokens
            talks[place] = [*request.sequences[0].token_ids, *words(30)]
            if ticket is not None:
                ended(ticket)
    seconds = max(engine.now for engine in engines)
    return Served(num_cached / num_prompt, seconds, 1 - busy / (NUM_ENGINES * seconds))


@pytest.fixture(scope="module")
def routed() -> Served:
    router = Router(NUM_ENGINES)
    for engine in range(NUM_ENGINES):
        router.goes_up(engine, (SIZES.num_blocks - 1) * SIZES.block_size)

    def choose(request: Request) -> tuple[int, Ticket]:
        ticket = router.choose(prompt_pieces(request), request)
        assert ticket is not None
        return ticket.engine, ticket

    return serve(choose, router.ended)


def test_conversations_find_their_beginnings_and_engines_their_work(routed: Served) -> None:
    dice = random.Random(2)
    at_random = serve(lambda request: (dice.randrange(NUM_ENGINES), None), lambda ticket: None)
    assert at_random.hit_rate < 0.4
    assert routed.hit_rate > 0.6
    assert routed.seconds < 0.9 * at_random.seconds
    assert routed.idle < at_random.idle
    assert routed.idle < 0.2
