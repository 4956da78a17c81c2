"""Sessions: branches give the tokens that fresh requests would, share their blocks, and leave none behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from octavo import LLM, EngineDeadError, InvalidRequestError, SamplingParams
from octavo.cache.invariants import check
from octavo.observe.events import BlockEvicted, BlocksGiven, PrefixHit, StepDone
from octavo.session import Session
from tests.conftest import TinyFolder

BLOCK = 16
PROMPT = [3 + place * 7 % 150 for place in range(6 * BLOCK + 5)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=6, ignore_eos=True, seed=11)
ENDLESS = SamplingParams(max_tokens=150, ignore_eos=True)


@pytest.fixture(scope="module")
def make(tiny_folder: TinyFolder) -> Callable[..., LLM]:
    options = {"skip_tokenizer_init": True, "num_threads": 1, "max_model_len": 256, "num_gpu_blocks_override": 200}
    return lambda **more: LLM(tiny_folder("llama"), **{**options, "check_invariants": True, **more})


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlapped"])
def llm(make: Callable[..., LLM], request: pytest.FixtureRequest) -> Iterator[LLM]:
    with make(async_scheduling=request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def speaker() -> Iterator[LLM]:
    with LLM("smollm2", max_model_len=128, num_threads=1, num_gpu_blocks_override=40) as engine:
        yield engine


def token_ids(outputs: Any) -> dict[int, list[int]]:
    return {number: output.outputs[0].token_ids for number, output in outputs.items()}


def fresh(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    """A request of its own that finds no cached block."""
    alone = params.replace(skip_reading_prefix_cache=True)
    return llm.generate([prompt], alone, use_tqdm=False)[0].outputs[0].token_ids


def is_tidy(llm: LLM) -> bool:
    """No block has an owner, and each is free or cached."""
    core: Any = llm._engine.core
    cache = core.cache
    check(cache, [])
    return (
        llm.stats().num_used_blocks == 0 and len(cache.pool.free) + len(cache.pool.cached) == cache.pool.num_blocks - 1
    )


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_branches_go_on_as_fresh_requests_would(llm: LLM, params: SamplingParams) -> None:
    with llm.session(PROMPT) as story:
        assert story.fork(3) == [0, 1, 2]
        story.extend([40, 41, 42], branch=1)
        story.extend(range(50, 70), branch=2)
        expected = {0: PROMPT, 1: [*PROMPT, 40, 41, 42], 2: [*PROMPT, *range(50, 70)]}
        for _ in range(3):
            made = token_ids(story.generate(params))
            for number, before in expected.items():
                own = params if params.seed is None else params.replace(seed=params.seed + number)
                assert made[number] == fresh(llm, before, own)
                expected[number] = before + made[number]
            assert {number: one.token_ids for number, one in story.branches.items()} == expected
        story.prune(0)
        assert story.fork(2, branch=2) == [2, 3]
        assert token_ids(story.generate(GREEDY, branches=[3, 1])) == {
            number: fresh(llm, expected[min(number, 2)], GREEDY) for number in (3, 1)
        }
        assert list(story.branches) == [1, 2, 3]
        assert story.branches[2].token_ids == expected[2]
    assert is_tidy(llm)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_branches_behind_a_window_go_on_as_fresh_requests_would(tiny_folder: TinyFolder, name: str) -> None:
    """Blocks behind a sliding window are given back, and found again only if they are still cached."""
    options = {"skip_tokenizer_init": True, "num_threads": 1, "num_gpu_blocks_override": 200, "check_invariants": True}
    with LLM(tiny_folder(name), **options) as llm, llm.session(PROMPT) as story:
        story.fork(2)
        for number in range(2):
            story.extend([40 + number], number)
        story.generate(GREEDY.replace(max_tokens=20))
        before = {number: one.token_ids for number, one in story.branches.items()}
        outputs = story.generate(GREEDY)
        assert all(output.num_cached_tokens == 7 * BLOCK for output in outputs.values())
        assert token_ids(outputs) == {number: fresh(llm, one, GREEDY) for number, one in before.items()}


def test_branches_share_every_full_block_of_what_they_have_in_common(llm: LLM) -> None:
    llm.reset_prefix_cache()
    with llm.session(PROMPT) as story:
        story.fork(8)
        for number in range(8):
            story.extend([100 + number], number)
        before = len(list(llm.events))
        story.generate(GREEDY)
        events = list(llm.events)[before:]
        given = sum(len(event.block_ids) for event in events if isinstance(event, BlocksGiven))
        hits = [event for event in events if isinstance(event, PrefixHit)]
        assert given == 6 + 8  # the prompt's full blocks once, and one tail for each branch
        assert len({event.block_ids for event in hits}) == 1
        assert [event.num_tokens for event in hits] == [6 * BLOCK] * 7

        story.prune(7)
        before = len(list(llm.events))
        outputs = story.generate(GREEDY)
        computed = sum(event.num_tokens for event in list(llm.events)[before:] if isinstance(event, StepDone))
        tail = len(PROMPT) + 1 + 6 - 6 * BLOCK
        assert all(output.num_cached_tokens == 6 * BLOCK for output in outputs.values())
        assert computed == 7 * (tail + 6 - 1)  # the partly filled block again, then token by token
    assert is_tidy(llm)


def test_a_salt_keeps_a_sessions_blocks_apart(llm: LLM) -> None:
    llm.generate([PROMPT], GREEDY, use_tqdm=False)
    for salted in (
        llm.session(PROMPT, cache_salt="mine"),
        llm.session({"prompt_token_ids": PROMPT, "cache_salt": "our"}),
    ):
        assert [salted.generate(GREEDY)[0].num_cached_tokens for _ in range(2)] == [0, 6 * BLOCK]


def test_evicted_blocks_are_computed_again(make: Callable[..., LLM]) -> None:
    with make(num_gpu_blocks_override=17) as small, small.session(PROMPT) as story:
        story.fork(6)
        first = token_ids(story.generate(GREEDY, branches=[0]))[0]
        small.generate([[5] * 200], GREEDY, use_tqdm=False)
        outputs = story.generate(GREEDY, branches=range(1, 6))  # six tails do not fit at once
        assert token_ids(outputs) == dict.fromkeys(range(1, 6), first)
        assert outputs[1].num_cached_tokens < 6 * BLOCK
        assert is_tidy(small)


def test_a_seed_for_all_differs_by_branch_and_a_list_is_taken_as_it_is(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        story.fork(4)
        made = token_ids(story.generate(SamplingParams(max_tokens=12, seed=-2, ignore_eos=True)))
        assert len({tuple(one) for one in made.values()}) == 4
    with llm.session(PROMPT) as story:
        story.fork(3)
        alike = token_ids(story.generate((SEEDED, SEEDED, GREEDY)))
        assert alike[0] == alike[1] == fresh(llm, PROMPT, SEEDED)
        assert alike[2] == fresh(llm, PROMPT, GREEDY)


def test_a_text_is_read_and_told(speaker: LLM) -> None:
    with speaker.session("Once upon a time") as story:
        a, b = story.fork(2)
        story.extend(" a king", branch=a)
        assert {number: one.text for number, one in story.branches.items()} == {
            a: "Once upon a time a king",
            b: "Once upon a time",
        }
        assert story.branches[a].token_ids[-2:] == speaker.get_tokenizer().encode(" a king", add_special_tokens=False)
        text = story.generate(GREEDY, branches=b)[b].outputs[0].text
        assert story.branches[b].text == "Once upon a time" + text
        assert repr(story) == f"Session(2 branches, {4 + 4 + 2 + 6} tokens)"
    assert repr(story) == "Session(closed)"
    (defaults,) = speaker.session({"prompt": "A"}).generate().values()
    assert defaults.outputs[0].finish_reason is not None


def test_a_branch_keeps_the_token_that_ended_it(speaker: LLM) -> None:
    with speaker.session("The capital of France is") as story:
        (output,) = story.generate(GREEDY.replace(max_tokens=32, stop="Paris")).values()
        assert "Paris" not in output.outputs[0].text
        assert story.branches[0].text == f"The capital of France is{output.outputs[0].text}Paris"


def test_a_failed_branch_stays_as_it_was(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_names(*_: object) -> None:
        raise ZeroDivisionError("no name")

    with llm.session(PROMPT) as story:
        story.fork(2)
        monkeypatch.setattr("octavo.engine.lazy_logprobs.named", break_names)
        outputs = story.generate([GREEDY.replace(logprobs=1), GREEDY])
        assert [output.outputs[0].finish_reason for output in outputs.values()] == ["error", "length"]
        assert [len(one.token_ids) for one in story.branches.values()] == [len(PROMPT), len(PROMPT) + 6]


def test_a_full_branch_cannot_go_on(make: Callable[..., LLM]) -> None:
    with make(max_model_len=32) as small, small.session([5] * 20) as story:
        story.fork(2)
        with pytest.raises(InvalidRequestError, match="branch 0 would have 32 tokens, allowed are 31"):
            story.extend([6] * 12)
        story.extend([6] * 11, branch=1)
        assert [len(output.outputs[0].token_ids) for output in story.generate(ENDLESS).values()] == [12, 1]
        for branches in (None, 1):
            with pytest.raises(InvalidRequestError, match=r"branch \d has 32 tokens, as many as max_model_len allows"):
                story.generate(GREEDY, branches)
        story.fork(2, branch=1)
        assert len(story.branches) == 3


def test_a_session_needs_the_prefix_cache(make: Callable[..., LLM]) -> None:
    with (
        make(enable_prefix_caching=False) as llm,
        pytest.raises(InvalidRequestError, match="enable_prefix_caching is False"),
    ):
        llm.session(PROMPT)


REFUSED: list[tuple[Callable[[Session], object], str]] = [
    (lambda story: story.fork(0), "n is 0, allowed is 1 to 16383"),
    (lambda story: story.fork(True), "n is True, allowed"),
    (lambda story: story.fork(2, branch=7), r"branch is 7, allowed are \[0, 1\]"),
    (lambda story: story.fork(2, branch="a"), "branch is 'a', allowed are"),
    (lambda story: story.prune(2), r"branch is 2, allowed are \[0, 1\]"),
    (lambda story: story.prune(None), "branch is None, allowed are"),
    (lambda story: story.extend("text"), "text is given, but skip_tokenizer_init=True"),
    (lambda story: story.extend([]), "the text is empty, allowed is at least one token"),
    (lambda story: story.extend({"prompt": "a"}), "text is .*, allowed are text and token ids"),
    (lambda story: story.extend(["a"]), "the text's token ids hold 'a', allowed are whole numbers"),
    (lambda story: story.extend([160]), "the text holds token id 160, allowed are 0 to 159"),
    (lambda story: story.extend([5], branch=9), "branch is 9, allowed are"),
    (lambda story: story.generate(GREEDY, [0, 0]), "branches holds .*, allowed is each number once"),
    (lambda story: story.generate(GREEDY, [0, 9]), "branch is 9, allowed are"),
    (lambda story: story.generate(GREEDY, "0"), "branch is '0', allowed are"),
    (lambda story: story.generate(GREEDY.replace(n=2)), "n is 2, allowed is 1: .* fork it"),
    (lambda story: story.generate([GREEDY, GREEDY.replace(n=2)]), "n is 2, allowed is 1: .* fork it"),
    (lambda story: story.generate(GREEDY.replace(truncate_prompt_tokens=4)), "truncate_prompt_tokens is 4, allowed is"),
    (lambda story: story.generate("greedy"), "sampling_params is 'greedy', allowed are"),
    (lambda story: story.generate([GREEDY]), "sampling_params holds 1 values for 2 prompts"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_cannot_be_meant_is_refused(llm: LLM, call: Callable[[Session], object], message: str) -> None:
    with llm.session(PROMPT) as story:
        story.fork(2)
        with pytest.raises(InvalidRequestError, match=message):
            call(story)
        assert [one.token_ids for one in story.branches.values()] == [PROMPT] * 2
    with pytest.raises(InvalidRequestError, match="the session is closed: begin another one"):
        call(story)


def test_without_branches_nothing_is_generated(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        assert story.generate(GREEDY, []) == {}
        story.prune(0)
        assert story.branches == {}
        for call in (story.generate, lambda: story.extend([5]), lambda: story.prune(0)):
            with pytest.raises(InvalidRequestError, match="all were pruned"):
                call()
    story.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        story.branches  # noqa: B018


ODD = [
    *(None, True, 0, 1, 2, -1, 2**70, 0.5, float("nan"), "", "a", b"a", [], [0], [1, 0], [[0]], [None], ["a"], {}),
    *({"prompt": "a"}, {"prompt_token_ids": [5], "cache_salt": 3}, object(), np.int64(0), np.array([4, 5]), iter([1])),
    *([2**70], [-1], range(3), GREEDY, [GREEDY], (GREEDY, 3), Session, [5] * 300, "\ud800"),
]


def test_every_argument_takes_any_value_or_refuses_it(llm: LLM) -> None:
    def survives(call: Callable[[], object]) -> bool:
        try:
            call()
        except InvalidRequestError:
            return False
        return True

    num_passed = 0
    for one in ODD:
        num_passed += survives(lambda one=one: llm.session(one))
        num_passed += survives(lambda one=one: llm.session(PROMPT, cache_salt=one))
        for method, before in (("fork", ()), ("fork", (2,)), ("extend", ()), ("extend", ([5],)), ("prune", ())):
            with llm.session(PROMPT) as story:
                story.fork(2)
                num_passed += survives(
                    lambda story=story, name=method, given=(*before, one): getattr(story, name)(*given)
                )
        for arguments in ((one,), (GREEDY, one)):
            with llm.session(PROMPT) as story:
                story.fork(2)
                num_passed += survives(lambda story=story, given=arguments: story.generate(*given))
    assert 30 < num_passed < 150
    assert is_tidy(llm)


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_leave_every_block_accounted_for(make: Callable[..., LLM], seed: int) -> None:
    """Tight memory, so that blocks are evicted and requests preempted."""
    rng = random.Random(seed)
    greedy = GREEDY.replace(max_tokens=9)
    with make(num_gpu_blocks_override=11, max_model_len=160, max_num_seqs=4) as small, make() as large:
        stories = small.session(PROMPT[:40]), small.session(PROMPT[:37], cache_salt="other")
        trees: list[dict[int, list[int]]] = [{0: PROMPT[:40]}, {0: PROMPT[:37]}]
        for _ in range(40):
            place = rng.randrange(2)
            story, tree = stories[place], trees[place]
            branch = rng.choice([*tree])
            match rng.randrange(6):
                case 0 if len(tree) < 6:
                    tree.update(dict.fromkeys(story.fork(rng.randrange(1, 4), branch), tree[branch]))
                case 1 if len(tree) > 1:
                    story.prune(branch)
                    del tree[branch]
                case 2 if len(tree[branch]) < 80:
                    added = [rng.randrange(160) for _ in range(rng.randrange(1, 20))]
                    story.extend(added, branch)
                    tree[branch] = tree[branch] + added
                case 3 | 4 | 5 if max(map(len, tree.values())) < 150:
                    made = token_ids(story.generate(greedy))
                    for number, tokens in made.items():
                        assert tokens == fresh(large, tree[number], greedy)
                        tree[number] = tree[number] + tokens
            assert {number: one.token_ids for number, one in story.branches.items()} == tree
            assert is_tidy(small)
        assert any(isinstance(event, BlockEvicted) for event in small.events)


def test_threads_may_continue_different_branches(llm: LLM) -> None:
    with llm.session(PROMPT) as story:
        story.fork(8)
        made: dict[int, list[int]] = {}

        def go(number: int) -> None:
            for _ in range(3):
                made.setdefault(number, []).extend(token_ids(story.generate(GREEDY, number))[number])

        threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        alone = fresh(llm, PROMPT, GREEDY.replace(max_tokens=18))
        assert made == dict.fromkeys(range(8), alone)
        assert all(one.token_ids == PROMPT + alone for one in story.branches.values())
    assert is_tidy(llm)


def test_a_branch_in_use_is_refused_and_a_closed_session_lets_its_calls_end(llm: LLM) -> None:
    story = llm.session(PROMPT)
    story.fork(2)
    outputs: list[Any] = []
    running = threading.Thread(target=lambda: outputs.append(story.generate(ENDLESS, 1)))
    running.start()
    while llm.stats().num_running == 0 and running.is_alive():
        pass
    refused = [lambda: story.extend([5]), story.generate, story.stream, lambda: story.extend([5], 1)]
    for call in refused:
        with pytest.raises(InvalidRequestError, match="branch is 1, which another call continues: wait until it has"):
            call()
    story.extend([5], branch=0)
    story.close()
    running.join(60)
    assert len(token_ids(outputs[0])[1]) == 150
    assert is_tidy(llm)


@pytest.mark.parametrize("name", ["make_request", "step"])
def test_an_interrupted_call_changes_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with llm.session(PROMPT) as story:
        with monkeypatch.context() as patch:
            patch.setattr(llm._engine, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                story.generate(GREEDY)
        assert story.branches[0].token_ids == PROMPT
        assert len(story.generate(GREEDY)) == 1


def test_a_closed_engine_ends_its_sessions(make: Callable[..., LLM]) -> None:
    with make() as llm:
        story = llm.session(PROMPT)
    with pytest.raises(EngineDeadError, match="closed"):
        story.generate(GREEDY)
    assert story.branches[0].token_ids == PROMPT
