"""Branches that run are streamed, forked and pruned; they go on as requests of their own would, and leave no block."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octavo import LLM, InvalidRequestError, SamplingParams
from octavo.observe.events import PrefixHit, StepDone
from octavo.sampling_params import RequestOutputKind
from tests.test_session import BLOCK, ENDLESS, GREEDY, PROMPT, SEEDED, fresh, is_tidy, llm, make, speaker, token_ids

__all__ = ["llm", "make", "speaker"]  # fixtures

LONG = GREEDY.replace(max_tokens=40)
DELTA = RequestOutputKind.DELTA


def read_until(stream: Iterator[Any], num_tokens: int, branch: int = 0) -> list[int]:
    """Read until a branch has so many tokens -> them."""
    for number, output in stream:
        if number == branch and len(output.outputs[0].token_ids) >= num_tokens:
            return list(output.outputs[0].token_ids)
    raise AssertionError("it ended before")


def finished(stream: Iterator[Any]) -> dict[int, list[int]]:
    return token_ids({number: output for number, output in stream if output.finished})


@pytest.mark.parametrize("params", [LONG, SEEDED.replace(max_tokens=40)], ids=["greedy", "seeded"])
def test_copies_go_on_from_the_tokens_of_a_branch_that_runs(llm: LLM, params: SamplingParams) -> None:
    with llm.session(PROMPT) as story:
        stream = story.stream(params)
        before = read_until(stream, 13)
        assert story.fork(3) == [0, 1, 2]
        made = finished(stream)
        assert made[0] == fresh(llm, PROMPT, params)
        for number in (1, 2):
            num_had = next(place for place in range(len(before), 41) if made[number][:place] == made[0][:place])
            own = params if params.seed is None else params.replace(seed=params.seed + number)
            rest = fresh(llm, PROMPT + made[0][:num_had], own.replace(max_tokens=40 - num_had))
            assert made[number] == made[0][:num_had] + rest
        assert (made[1] == made[2]) is (params.seed is None)
        assert {number: one.token_ids for number, one in story.branches.items()} == {
            number: PROMPT + one for number, one in made.items()
        }
        assert list(story.generate(GREEDY)) == [0, 1, 2]
    assert is_tidy(llm)


def test_what_depends_on_the_whole_answer_goes_on_in_copies(llm: LLM) -> None:
    """Penalties, min_tokens and max_tokens count from the prompt, not from the fork."""
    params = LONG.replace(presence_penalty=1.5, repetition_penalty=1.2, min_tokens=30, ignore_eos=False)
    with llm.session(PROMPT) as story:
        stream = story.stream(params)
        read_until(stream, 20)
        story.fork(2)
        story.fork(2, branch=1)
        made = finished(stream)
        assert made == dict.fromkeys(range(3), fresh(llm, PROMPT, params))


def test_a_copy_computes_no_block_that_its_branch_holds(llm: LLM) -> None:
    llm.reset_prefix_cache()
    with llm.session(PROMPT) as story:
        stream = story.stream(LONG)
        read_until(stream, 20)
        num_before = len(list(llm.events))
        story.fork(5)
        num_computed = 0
        outputs = {number: output for number, output in stream if output.finished}
        events = list(llm.events)[num_before:]
        hits = [event for event in events if isinstance(event, PrefixHit)]
        assert [event.num_tokens for event in hits] == [7 * BLOCK] * 4
        assert len({event.block_ids for event in hits}) == 1
        assert all(outputs[number].num_cached_tokens == 7 * BLOCK for number in range(1, 5))
        num_computed = sum(event.num_tokens for event in events if isinstance(event, StepDone))
        whole = len(PROMPT) + 40 - 1 - 7 * BLOCK  # of a copy; the branch itself computes fewer
        assert num_computed <= 5 * whole


def test_a_pruned_branch_frees_its_blocks_at_once(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        story.fork(3)
        story.extend([40], branch=1)
        stream = story.stream(ENDLESS)
        read_until(stream, 40)
        used = llm.stats().num_used_blocks
        story.prune(1)
        assert llm.stats().num_used_blocks <= used - 2  # what no other branch has
        assert list(story.branches) == [0, 2]
        story.prune(2)
        story.prune(0)
        assert is_tidy(llm)
        last = dict(stream)
        assert {number: output.outputs[0].finish_reason for number, output in last.items()} == dict.fromkeys(
            range(3), "abort"
        )
        assert list(stream) == []


def test_pieces_of_a_copy_begin_with_what_its_branch_had(speaker: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=24, stop=["zzz"], output_kind=DELTA, ignore_eos=True)
    with speaker.session("Once upon a time") as story:
        texts: dict[int, str] = {}
        ids: dict[int, list[int]] = {}
        for number, output in story.stream(params):
            for one in output.outputs:
                texts[number] = texts.get(number, "") + one.text
                ids[number] = ids.get(number, []) + one.token_ids
            if len(ids[0]) == 9 and len(story.branches) == 1:
                story.fork(3)
        assert len({*texts.values()}) == 3
        assert {len(one) for one in ids.values()} == {24}
        assert {tuple(one[:9]) for one in ids.values()} == {tuple(ids[0][:9])}
        assert {number: one.text for number, one in story.branches.items()} == {
            number: "Once upon a time" + text for number, text in texts.items()
        }
    assert is_tidy(speaker)


def test_a_stop_string_may_begin_before_the_fork(speaker: LLM) -> None:
    with speaker.session("The capital of France is") as story:
        whole = story.generate(GREEDY.replace(max_tokens=12))[0].outputs[0]
    stop = whole.text[3:-4]
    with speaker.session("The capital of France is") as story:
        stream = story.stream(GREEDY.replace(max_tokens=12, stop=stop))
        read_until(stream, 4)
        story.fork(2)
        ends = {number: output.outputs[0] for number, output in stream if output.finished}
        assert [(one.text, one.stop_reason) for one in ends.values()] == [(whole.text[:3], stop)] * 2


def test_log_probabilities_go_on_where_they_are_kept(llm: LLM) -> None:
    params = LONG.replace(logprobs=1, prompt_logprobs=1)
    with llm.session(PROMPT[:20]) as story:
        stream = story.stream(params)
        read_until(stream, 5)
        story.fork(2)
        ends = {number: output for number, output in stream if output.finished}
        assert ends[0].outputs[0].logprobs == ends[1].outputs[0].logprobs
        assert ends[0].outputs[0].cumulative_logprob == ends[1].outputs[0].cumulative_logprob
        assert ends[0].prompt_logprobs == ends[1].prompt_logprobs
        assert [len(one.outputs[0].logprobs or ()) for one in ends.values()] == [40, 40]
        stream = story.stream(params.replace(output_kind=DELTA, prompt_logprobs=None), branches=0)
        next(stream)
        with pytest.raises(InvalidRequestError, match="log-probabilities that a stream has given out are not kept"):
            story.fork(2)
        assert list(story.branches) == [0, 1]
        assert story.fork(2, branch=1) == [1, 3]
    beams = GREEDY.replace(use_beam_search=True, best_of=2)
    with llm.session(PROMPT[:20]) as story:
        stream = story.stream(beams)
        with pytest.raises(InvalidRequestError, match="a beam search cannot be forked while it runs"):
            story.fork(2)
        assert len(finished(stream)[0]) == 6
    assert is_tidy(llm)


def test_a_fork_before_the_first_output_is_a_request_of_its_own(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        stream = story.stream(SEEDED)
        story.fork(3)
        story.prune(1)
        ends = {number: output.outputs[0] for number, output in stream if output.finished}
        assert (ends[1].finish_reason, ends[1].token_ids) == ("abort", [])
        for number in (0, 2):
            assert ends[number].token_ids == fresh(llm, PROMPT, SEEDED.replace(seed=11 + number))


@pytest.mark.parametrize("kind", [DELTA, RequestOutputKind.CUMULATIVE])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_stream_that_is_left_keeps_what_was_read(llm: LLM, kind: RequestOutputKind, is_dropped: bool) -> None:
    with llm.session(PROMPT) as story:
        story.fork(2)
        stream: Any = story.stream([GREEDY, ENDLESS.replace(output_kind=kind, seed=5)])
        last = dict(itertools.islice(stream, 20))
        assert list(last) == [0, 1]
        if is_dropped:
            del stream
            gc.collect()
        else:
            stream.close()
            assert list(stream) == []
        kept = len(story.branches[1].token_ids) - len(PROMPT)
        assert kept == 20 - 6
        assert story.branches[0].token_ids == PROMPT + fresh(llm, PROMPT, GREEDY)
        assert story.branches[1].token_ids[:-1] == PROMPT + fresh(llm, PROMPT, ENDLESS.replace(seed=5))[: kept - 1]
        assert len(story.generate(GREEDY)) == 2
    assert is_tidy(llm)


def test_a_branch_is_free_once_its_last_output_is_read(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        story.fork(2)
        stream = story.stream([GREEDY, ENDLESS])
        for number, output in stream:
            if output.finished and number == 0:
                break
        story.extend([40], branch=0)
        assert story.fork(2, branch=0) == [0, 2]
        assert len(story.generate(GREEDY, branches=[0, 2])[2].outputs[0].token_ids) == 6
        with pytest.raises(InvalidRequestError, match="branch is 1, which another call continues"):
            story.extend([40], branch=1)
        assert len(finished(stream)[1]) == 150


def test_a_thread_may_fork_and_prune_what_another_generates(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm._engine.step
    monkeypatch.setattr(llm._engine, "step", lambda: (time.sleep(0.002), step())[1])  # slower than this thread
    with llm.session(PROMPT) as story:
        outputs: list[Any] = []
        running = threading.Thread(target=lambda: outputs.append(story.generate(ENDLESS)))
        running.start()
        while llm.stats().num_running == 0 and running.is_alive():
            pass
        numbers = story.fork(3)
        story.prune(1)
        running.join(60)
        assert numbers == [0, 1, 2]
        (made,) = outputs
        assert list(made) == [0, 1, 2]
        assert made[1].outputs[0].finish_reason == "abort"
        assert [len(made[number].outputs[0].token_ids) for number in (0, 2)] == [150, 150]
        assert list(story.branches) == [0, 2]
    assert is_tidy(llm)


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_random_forks_and_prunes_leave_every_block_accounted_for(
    make: Callable[..., LLM], seed: int, is_overlapped: bool
) -> None:
    """Tight memory and few seats, so that branches wait, are preempted and lose cached blocks; every step checks the
    books. Each branch that is left has the tokens of one request with its seed from its last fork on."""
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=100)
    with (
        make(num_gpu_blocks_override=14, max_model_len=128, max_num_seqs=5, async_scheduling=is_overlapped) as small,
        make() as large,
    ):
        for _ in range(4):
            prompt = PROMPT[: rng.randrange(20, 60)]
            story = small.session(prompt)
            story.fork(3)
            seen: dict[int, list[int]] = {}
            had: dict[int, list[int]] = {0: [], 1: [], 2: []}  # what a copy's branch had, as far as it was read
            stream: Any = story.stream(params)
            for number, output in stream:
                (one,) = output.outputs
                assert one.token_ids[: len(seen.get(number, []))] == seen.get(number, [])
                seen[number] = one.token_ids
                match rng.randrange(12):
                    case 0 if len(story.branches) < 9:
                        branch = rng.choice([*story.branches])
                        read = max(seen.get(branch, []), had[branch], key=len)
                        had.update(dict.fromkeys(story.fork(rng.randrange(1, 4), branch)[1:], read))
                    case 1 if len(story.branches) > 1:
                        story.prune(rng.choice([*story.branches]))
                    case 2 if rng.randrange(20) == 0:
                        stream.close()
            small.stats()  # what a closed stream leaves is aborted at the next turn
            assert is_tidy(small)
            for number, kept in story.branches.items():
                made, own = kept.token_ids[len(prompt) :], params.replace(seed=100 + number)
                places = range(min(len(had[number]), len(made)), len(made) + 1)
                rest = [fresh(large, prompt + made[:place], own)[: len(made) - place] for place in places[:3]]
                assert any(made[place:] == one for place, one in zip(places, rest, strict=False))
                assert made[: len(had[number])] == had[number][: len(made)]
            story.close()
