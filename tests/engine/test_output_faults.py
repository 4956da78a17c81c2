"""A fault in one request's output ends only that request, also offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.engine.llm_engine import OutputProcessor
from octavo.engine.output import RequestText
from octavo.messages import LogprobRow
from octavo.outputs import CompletionOutput
from octavo.request import Request, Sequence, SequenceId
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.scheduler.step import SequenceUpdate
from octavo.text.detokenizer import TextStream, TokenTexts


class Letters:
    """A tokenizer of the alphabet; decoding some of its tokens raises."""

    def __init__(self, broken: int = -1) -> None:
        self._broken = broken

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        if self._broken in token_ids:
            raise ZeroDivisionError("this token breaks")
        return "".join(chr(97 + token_id) for token_id in token_ids)

    @property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(lambda token_id: self.decode([token_id]))

    def stream(self, skip_special_tokens: bool, prompt_token_ids: list[int]) -> TextStream:
        letters = self

        class Stream:
            def push(self, token_id: int) -> str:
                return letters.decode([token_id])

            def finish(self) -> str:
                return ""

            def copy(self) -> TextStream:
                return self

        return Stream()  # type: ignore[return-value]


def make_request(name: str, **params: Any) -> Request:
    request = Request(name, [1, 2], SamplingParams(**params), seed=0, arrival_time=0.0, max_output_tokens=9)
    request.sequences += [Sequence(SequenceId(index), request, index, []) for index in range(params.get("n", 1))]
    return request


def update(request: Request, token_id: int, index: int = 0, logprobs: LogprobRow | None = None) -> SequenceUpdate:
    return SequenceUpdate(request.sequences[index], [token_id], [] if logprobs is None else [logprobs], [])


BREAKS: dict[str, Callable[[Request], SequenceUpdate]] = {
    "text": lambda request: update(request, 5),
    "a logprob's name": lambda request: update(request, 1, logprobs=LogprobRow([1, 5], [-1.0, -2.0], 1)),
    "a row that is none": lambda request: update(request, 1, logprobs=LogprobRow([], [], 0)),
    "a prompt's logprobs": lambda request: SequenceUpdate(request.sequences[0], [], [], [LogprobRow([5], [-1.0], 1)]),
}


@pytest.mark.parametrize("kind", RequestOutputKind)
@pytest.mark.parametrize("what", list(BREAKS))
def test_a_fault_ends_its_request_and_no_other(what: str, kind: RequestOutputKind) -> None:
    outputs = OutputProcessor(Letters(broken=5))  # type: ignore[arg-type]
    bad = make_request("bad", n=2, logprobs=1, prompt_logprobs=1, output_kind=kind)
    good = make_request("good", output_kind=RequestOutputKind.CUMULATIVE)
    for request in (bad, good):
        outputs.add(request)
    first = [update(bad, 2, index, LogprobRow([2], [-1.0], 1)) for index in range(2)]
    outputs.process([*first, update(good, 0)], 1.0)

    done = outputs.process([BREAKS[what](bad), update(good, 1)], 2.0)
    assert [fault.request_id for fault in done.faults] == ["bad"]
    assert done.faults[0].reason.startswith("its output could not be made: ")
    ended, running = done.outputs
    assert ended.finished
    assert [one.finish_reason for one in ended.outputs] == ["error", "error"]
    assert all(one.stop_reason == done.faults[0].reason for one in ended.outputs)
    assert all(len(one.logprobs or []) <= len(one.token_ids) for one in ended.outputs)
    if kind is not RequestOutputKind.DELTA:
        assert ended.outputs[1].text == "c", "what there was is still handed out"
    assert (running.request_id, running.outputs[0].text) == ("good", "ab")

    assert outputs.process([update(bad, 3)], 3.0) == ([], [], []), "it has ended"
    assert outputs.abort("bad", 3.0) == []


def test_a_fault_while_the_output_itself_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = OutputProcessor(Letters())  # type: ignore[arg-type]
    bad, good = make_request("bad", n=3), make_request("good")
    for request in (bad, good):
        outputs.add(request)

    def break_bad(text: RequestText, now: float, made: Any = RequestText._output) -> Any:
        return 1 / 0 if text.request_id == "bad" else made(text, now)

    monkeypatch.setattr(RequestText, "_output", break_bad)
    done = outputs.process([update(bad, 0), update(good, 1)], 1.0)
    assert [(one.request_id, one.finished) for one in done.outputs] == [("bad", True), ("good", False)]
    reason = "its output could not be made: ZeroDivisionError: division by zero"
    assert done.outputs[0].outputs == [
        CompletionOutput(index, "", [], finish_reason="error", stop_reason=reason) for index in range(3)
    ]
    assert [fault.reason for fault in done.faults] == [reason]


def test_a_fault_at_an_abort() -> None:
    outputs = OutputProcessor(Letters())  # type: ignore[arg-type]
    request = make_request("bad")
    outputs.add(request)
    outputs._requests["bad"]._sequences[0].abort = lambda: 1 / 0  # type: ignore[method-assign,assignment]
    (last,) = outputs.abort("bad", 1.0)
    assert (last.finished, last.outputs[0].finish_reason) == (True, "error")
