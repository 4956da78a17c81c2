"""Answers are shown in the order of the prompts, in whatever order they are generated."""

import io
import json

from octavo.cli.answers import Answer, JsonLines, LiveText, Sample, gather
from octavo.cli.run_requests import RunRequest
from octavo.outputs import CompletionOutput, FinishReason, RequestOutput
from octavo.sampling_params import SamplingParams


def ask(prompt: str, n: int = 1) -> RunRequest:
    return RunRequest(prompt, {"prompt": prompt}, SamplingParams(n=n))


def output(index: int, *texts: tuple[int, str, FinishReason | None], finished: bool = False) -> RequestOutput:
    """texts: (sample, new text, finish reason)."""
    completions = [
        CompletionOutput(index=sample, text=text, token_ids=[1] * len(text), finish_reason=reason)
        for sample, text, reason in texts
    ]
    return RequestOutput(f"0-{index}", None, [9, 9], completions, finished)


def test_the_second_answer_waits_for_the_first() -> None:
    file = io.StringIO()
    text = LiveText(file, num_requests=2)
    stream = [
        output(1, (0, "two", None)),
        output(0, (0, "on", None)),
        output(1, (0, "!", "stop"), finished=True),
        output(0, (0, "e", "stop"), finished=True),
    ]
    seen = []
    for index, answer in gather([ask("First?"), ask("Second?")], stream):
        text.update(index, answer)
        seen.append(file.getvalue())
    assert seen == [
        "",
        "> First?\non",
        "> First?\non",
        "> First?\none\n\n> Second?\ntwo!\n",
    ]


def test_one_prompt_is_answered_without_a_title() -> None:
    file = io.StringIO()
    text = LiveText(file, num_requests=1)
    for index, answer in gather([ask("Hi")], [output(0, (0, "Ho\n", "stop"), finished=True)]):
        text.update(index, answer)
    assert file.getvalue() == "Ho\n"


def test_samples_are_numbered_and_shown_in_order() -> None:
    file = io.StringIO()
    text = LiveText(file, num_requests=1)
    stream = [
        output(0, (1, "b", None), (0, "a", None)),
        output(0, (1, "b", "stop")),
        output(0, (0, "a", "length"), finished=True),
    ]
    for index, answer in gather([ask("Hi", n=2)], stream):
        text.update(index, answer)
    assert file.getvalue() == "[1] aa\n[2] bb\n"


def test_json_lines_come_in_the_order_of_prompts() -> None:
    file = io.StringIO()
    lines = JsonLines(file)
    first, second = Answer(ask("a"), [Sample()]), Answer(ask("b"), [Sample()])
    second.extend(output(1, (0, "two", "length"), finished=True))
    lines.update(1, second)
    assert file.getvalue() == ""
    first.extend(output(0, (0, "one", "stop"), finished=True))
    lines.update(0, first)
    records = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [record["prompt"] for record in records] == ["a", "b"]
    assert records[1] == {
        "index": 1,
        "prompt": "b",
        "outputs": [{"index": 0, "text": "two", "finish_reason": "length", "stop_reason": None, "num_tokens": 3}],
        "num_prompt_tokens": 2,
        "num_cached_tokens": 0,
    }
