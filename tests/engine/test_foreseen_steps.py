"""A core that begins a step ahead only if it foresees it: with beams, or tokens that are forced, its steps are those of
the plain core."""

from __future__ import annotations

import itertools
from contextlib import closing

import pytest

from octavo.engine.core import EngineCore, OverlappedCore
from octavo.executor.executor import ThreadExecutor
from octavo.observe.events import Scheduled, StepDone
from octavo.request import Request
from tests.simulate import Simulator, make_request

PROMPT = list(range(20))


def plain() -> list[Request]:
    return [make_request("a", PROMPT, n=2), make_request("b", PROMPT[:7], max_tokens=9), make_request("c", PROMPT[3:])]


def with_beams() -> list[Request]:
    return [*plain(), make_request("d", PROMPT[2:], max_tokens=6, use_beam_search=True, n=2, best_of=3)]


def with_a_grammar() -> list[Request]:
    """Draws give up to three tokens, as if grammars forced some. It runs longest."""
    request = make_request("d", PROMPT[2:], max_tokens=60)
    request.grammar = "any"
    return [*plain(), request]


def run(requests: list[Request], *, is_ahead: bool, forces: bool) -> Simulator:
    """All requests in a core. is_ahead: in one that begins the steps that it foresees."""
    run_lens = itertools.cycle([1, 3, 1, 2])
    simulator = Simulator(checks=True, run_len=(lambda: next(run_lens)) if forces else None)
    executor = ThreadExecutor(simulator.executor)  # type: ignore[arg-type]
    parts = simulator.scheduler, simulator.cache, executor, simulator.events, simulator._clock
    core = OverlappedCore(*parts, always_ahead=False) if is_ahead else EngineCore(*parts)
    with closing(core):
        for request in requests:
            core.add_request(request)
        for _ in range(200):
            if not core.has_unfinished:
                return simulator
            core.step()
    raise AssertionError("the engine never came to rest")


def steps_of(simulator: Simulator) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The sequences of each step, and how many tokens it computes of them."""
    found = [event for event in simulator.events if isinstance(event, Scheduled) and event.sequence_ids]
    return [(event.sequence_ids, event.num_tokens) for event in found]


def most_in_flight(simulator: Simulator) -> int:
    """Steps that were planned and had not brought their tokens yet."""
    kinds = [type(event) for event in simulator.events if type(event) in (Scheduled, StepDone)]
    return max(itertools.accumulate(1 if kind is Scheduled else -1 for kind in kinds))


@pytest.mark.parametrize("make", [with_beams, with_a_grammar])
def test_what_cannot_be_foreseen_is_awaited(make) -> None:
    forces, asked, also_asked = make is with_a_grammar, make(), make()
    expected = run(asked, is_ahead=False, forces=forces)
    found = run(also_asked, is_ahead=True, forces=forces)
    assert steps_of(found) == steps_of(expected)
    for request, other in zip(also_asked, asked, strict=True):
        assert [one.output_token_ids for one in request.sequences] == [one.output_token_ids for one in other.sequences]


def test_what_is_foreseen_is_begun_ahead() -> None:
    asked, also_asked = plain(), plain()
    assert most_in_flight(run(asked, is_ahead=False, forces=False)) == 1
    assert most_in_flight(run(also_asked, is_ahead=True, forces=False)) == 2
    for request, other in zip(also_asked, asked, strict=True):
        assert [one.output_token_ids for one in request.sequences] == [one.output_token_ids for one in other.sequences]
