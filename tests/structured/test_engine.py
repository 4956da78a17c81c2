"""Structured output in whole engines: answers have the form, whatever else is asked, and do not depend on how they are
computed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from octavo import LLM, InvalidRequestError, RequestOutput, SamplingParams, StructuredOutputsParams
from octavo.engine.core import EngineCore
from octavo.observe.events import Preempted, Sampled, StepDone
from octavo.observe.tally import Tally
from octavo.structured.compiler import GrammarCompiler
from tests.conftest import TinyFolder
from tests.structured.spelling_model import END, spelling_model
from tests.worker.guessing import guess_next_tokens

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CLOSED = {"json": PERSON, "disable_any_whitespace": True}
FORMS: dict[str, dict[str, Any]] = {
    "json": CLOSED,
    "regex": {"regex": r"[a-f]{2}-\d{3}(x|yz)"},
    "choice": {"choice": ["name", "names", "age", "true!"]},
    "lark": {"grammar": 'start: "name" WORD "age" WORD\nWORD: /[a-c]{1,3};/\n'},
    "gbnf": {"grammar": 'root ::= "name=" [a-c] [a-c]? ";"\n'},
    "object": {"json_object": True, "whitespace_pattern": ""},
    "tag": {
        "structural_tag": {
            "structures": [{"begin": "<f>", "schema": {"enum": [12, 345]}, "end": "</f>"}],
            "triggers": ["<f"],
        }
    },
}
MATCHES: dict[str, Callable[[str], Any]] = {
    "json": lambda text: Draft202012Validator(PERSON).is_valid(json.loads(text)),
    "regex": re.compile(r"[a-f]{2}-\d{3}(x|yz)").fullmatch,
    "choice": ["name", "names", "age", "true!"].__contains__,
    "lark": re.compile(r"name[a-c]{1,3};age[a-c]{1,3};").fullmatch,
    "gbnf": re.compile(r"name=[a-c][a-c]?;").fullmatch,
    "object": lambda text: isinstance(json.loads(text), dict),
    "tag": lambda text: all(re.match("<f>(12|345)</f>", text[found.start() :]) for found in re.finditer("<f", text)),
}
PROMPTS = [[5, 9, 12], [7] * 20, [44, 45]]
MANY = [list(range(5 + index, 25 + index)) for index in range(9)]


@pytest.fixture(scope="module")
def folder(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spelling_model(tiny_folder, tmp_path_factory.mktemp("structured"))


def engine(folder: Path, **options: Any) -> LLM:
    given = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 8, "check_invariants": True, **options}
    return LLM(str(folder), **given)


def params(form: str, **more: Any) -> SamplingParams:
    given: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 90, **more}
    return SamplingParams(structured_outputs=FORMS[form], **given)


def all_params() -> list[SamplingParams]:
    """With what else a request may ask for; forms that end by themselves."""
    return [
        params("json", n=3),
        params("json", temperature=0.0),
        params("regex", min_tokens=30, stop_token_ids=[20]),
        params("choice", ignore_eos=True, n=2),
        params("lark", presence_penalty=1.0, logit_bias={40: 3.0}, bad_words=["b"]),
        params("gbnf", logprobs=2),
        params("json", stop=["age"]),
        SamplingParams(temperature=1.0, seed=9, max_tokens=20),
        params("json", max_tokens=9),
    ]


def tokens(outputs: list[RequestOutput]) -> list[Any]:
    return [[(one.token_ids, one.text, one.finish_reason, one.stop_reason) for one in each.outputs] for each in outputs]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    with engine(folder, backend="reference") as plain:
        return tokens(plain.generate(MANY, all_params(), use_tqdm=False))


def test_answers_have_the_form(folder: Path, expected: list[Any]) -> None:
    for answers, form in zip(expected[:6], ["json", "json", "regex", "choice", "lark", "gbnf"], strict=True):
        for _, text, reason, stop in answers:
            assert (reason, stop) == ("stop", None)
            assert MATCHES[form](text), text
    (_, text, reason, stop) = expected[6][0]
    assert (reason, stop) == ("stop", "age")
    assert text.startswith('{"name":"')
    assert "b" not in expected[4][0][1]
    assert expected[8][0][2] == "length"
    assert len(expected[8][0][0]) == 9
    with engine(folder) as llm:
        for form in ("object", "tag"):
            for one in llm.generate([PROMPTS[1]], params(form, n=6, max_tokens=60), use_tqdm=False)[0].outputs:
                assert one.finish_reason == "length" or MATCHES[form](one.text), one.text


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu"},
        {"async_scheduling": True},
        {"max_num_batched_tokens": 8, "num_gpu_blocks_override": 9, "schedule_conservativeness": 0},
        {"async_scheduling": True, "num_gpu_blocks_override": 9, "schedule_conservativeness": 0},
        {"backend": "cpu", "distributed_executor_backend": "mp"},
    ],
    ids=lambda options: " ".join(options),
)
def test_answers_do_not_depend_on_how_they_are_computed(
    folder: Path, expected: list[Any], options: dict[str, Any]
) -> None:
    with engine(folder, **{"backend": "reference", **options}) as llm:
        for _ in range(2):  # the second time with known grammars and blocks
            assert tokens(llm.generate(MANY, all_params(), use_tqdm=False)) == expected
        assert llm.stats().num_used_blocks == 0
        if "num_gpu_blocks_override" in options:
            assert any(isinstance(event, Preempted) for event in llm.events)


def test_right_and_wrong_guesses_change_nothing(
    folder: Path, inline_executor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [params("json", n=2), params("lark"), SamplingParams(temperature=1.0, seed=1, max_tokens=20)]
    with engine(folder, backend="reference") as plain:
        outputs = plain.generate(PROMPTS, asked, use_tqdm=False)
    guesses = guess_next_tokens(monkeypatch, outputs)
    with engine(folder, backend="reference") as guessing:
        answers = tokens(guessing.generate(PROMPTS, asked, use_tqdm=False))
    assert [[one[1:] for one in each] for each in answers] == [[one[1:] for one in each] for each in tokens(outputs)]
    pairs = zip(answers, tokens(outputs), strict=True)
    for answer, expected in ((a[0], e[0]) for each in pairs for a, e in zip(*each, strict=True)):
        assert answer in (expected, [*expected, END])  # drawn behind a right guess, where the grammar had ended
    assert sum(guesses)


def test_forced_tokens_take_no_step_of_their_own(folder: Path) -> None:
    with engine(folder, async_scheduling=False, disable_log_stats=False) as llm:
        (output,) = llm.generate([PROMPTS[0]], params("json"), use_tqdm=False)
        num_tokens = len(output.outputs[0].token_ids)
        num_forced = sum(event.num_forced for event in llm.events if isinstance(event, Sampled))
        assert num_forced >= 4, output.outputs[0].text
        report = Tally(llm.events).report()
        assert report.num_forced_tokens == num_forced
        assert ("forced", f"{num_forced} tokens came from grammars, without a draw") in report.lines()
        counted = [metric for metric in llm.get_metrics() if metric.name == "vllm:forced_tokens"]
        assert f"value={num_forced}" in str(counted)
        steps = [event for event in llm.events if isinstance(event, StepDone) and event.num_tokens]
        assert len(steps) == num_tokens - num_forced


def test_a_schema_may_be_text_a_dict_or_a_pydantic_model(folder: Path) -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        age: int

    with engine(folder) as llm:
        for schema in (Person, Person.model_json_schema(), json.dumps(Person.model_json_schema())):
            form = StructuredOutputsParams(json=schema, disable_additional_properties=True, whitespace_pattern="")
            asked = SamplingParams(structured_outputs=form, max_tokens=80, seed=3, logit_bias={37: 2.0})
            (output,) = llm.generate([PROMPTS[2]], asked, use_tqdm=False)
            text = output.outputs[0].text
            assert output.outputs[0].finish_reason == "length" or Person.model_validate_json(text)
            assert text.startswith('{"age":')


def test_what_is_drawn_without_a_grammar_ends_with_the_end_token(folder: Path) -> None:
    """A grammar that could go on ends where the model says so, and only there."""
    with engine(folder) as llm:
        form = {"regex": "(ab)+"}
        asked = SamplingParams(structured_outputs=form, n=4, seed=1, max_tokens=60, logit_bias={END: 4.0})
        for one in llm.generate([PROMPTS[0]], asked, use_tqdm=False)[0].outputs:
            assert re.fullmatch("(ab)+", one.text), one.text
            assert (one.finish_reason, one.token_ids[-1]) == ("stop", END)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"json": {"type": "array", "uniqueItems": True}}, ["uniqueItems", "leave them out"]),
        ({"grammar": "start: foo"}, ["1(8)", "foo"]),
        ({"grammar": "root ::= ("}, ["grammar"]),
        ({"regex": "a("}, ["regex", "unclosed group"]),
        ({"json": "{"}, ["structured_outputs.json", "line 1 column 2"]),
        ({"regex": "a", "choice": ["b"]}, ["regex and choice", "exactly one"]),
        ({}, ["nothing", "exactly one"]),
        ({"jsn": {}}, ["jsn", "json"]),
        ({"choice": []}, ["choice"]),
        ({"regex": "a" * 300_000}, ["300000", "262144"]),
        (
            {"json": {"$ref": "https://example.org/schema"}},
            ["example.org", "may only lead to a place in the same schema"],
        ),
        ({"json": {"$ref": "#"}}, ["no answer matches it: a $ref or a rule leads only back to itself"]),
        ({"grammar": "start: a\na: a"}, ["no answer matches it"]),
        ({"regex": r"[^\s\S]"}, ["no answer matches it", "a regex matches nothing"]),
        ({"json": {"type": "string", "format": "password"}}, ["Unknown format: password; allowed are date-time, "]),
    ],
    ids=str,
)
def test_a_bad_grammar_says_where(folder: Path, form: dict[str, Any], words: list[str]) -> None:
    with engine(folder) as llm:
        with pytest.raises(InvalidRequestError) as error:
            llm.generate([PROMPTS[0]], SamplingParams(structured_outputs=form), use_tqdm=False)
        assert all(word in str(error.value) for word in words), error.value
        assert llm.generate([PROMPTS[0]], SamplingParams(max_tokens=1), use_tqdm=False)[0].finished


def test_beams_follow_no_grammar(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"structured_outputs .* use_beam_search"):
        params("json", use_beam_search=True, best_of=2)


def test_an_engine_in_another_process_compiles_grammars_too(folder: Path, inline_executor: None) -> None:
    """Its requests wait at the gate meanwhile, and it opens a tokenizer for grammars alone."""
    asked = [params("json"), params("gbnf"), SamplingParams(max_tokens=3, seed=1), params("json", n=2)]
    with engine(folder, backend="reference") as plain:
        expected = tokens(plain.generate([PROMPTS[0]] * 4, asked, use_tqdm=False))
    with engine(folder, backend="cpu", data_parallel_size=2) as several:  # which starts without torch
        assert tokens(several.generate([PROMPTS[0]] * 4, asked, use_tqdm=False)) == expected


def test_a_request_that_waits_for_its_grammar_can_be_aborted(folder: Path) -> None:
    with engine(folder) as llm:
        engine_, form = llm._engine, {"regex": "[ab]{3}"}
        request = engine_.make_request("one", PROMPTS[0], SamplingParams(structured_outputs=form, max_tokens=9))
        engine_.add_request(request)
        assert isinstance(engine_.core, EngineCore)
        assert engine_.core.num_waiting == 1
        engine_.abort_request("one")
        assert engine_.core.num_waiting == 0
        assert [output.outputs[0].finish_reason for output in engine_.step()] == ["abort"]
        assert not engine_.has_unfinished_requests


class SlowGate:
    """Makes the gate's threads wait for `go`, and fail with `fault`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.fault = threading.Event(), None
        compile_ = GrammarCompiler.matcher

        def matcher(compiler: GrammarCompiler, text: str, lane: int = 0) -> Any:
            if threading.current_thread().name.startswith("octavo-grammar"):
                assert self.go.wait(20)
                if self.fault is not None:
                    raise self.fault
            return compile_(compiler, text, lane)

        monkeypatch.setattr(GrammarCompiler, "matcher", matcher)


def test_a_slow_grammar_holds_up_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = SlowGate(monkeypatch)
    with engine(folder) as llm:
        engine_ = llm._engine
        for name, asked in (("slow", params("gbnf")), ("free", SamplingParams(max_tokens=5, ignore_eos=True))):
            engine_.add_request(engine_.make_request(name, PROMPTS[0], asked))
        ended: list[RequestOutput] = []
        while not ended:
            ended += [output for output in engine_.step() if output.finished]
        assert [output.request_id for output in ended] == ["free"]
        gate.go.set()
        while engine_.has_unfinished_requests:
            ended += [output for output in engine_.step() if output.finished]
        assert MATCHES["gbnf"](ended[1].outputs[0].text)


def test_a_grammar_that_fails_late_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an engine's process has other limits than its front end."""
    gate = SlowGate(monkeypatch)
    gate.fault = InvalidRequestError("structured_outputs cannot be compiled: too large")
    gate.go.set()
    with engine(folder) as llm:
        one, other = llm.generate(PROMPTS[:2], [params("gbnf", n=2), SamplingParams(max_tokens=3)], use_tqdm=False)
    assert [(each.finish_reason, each.stop_reason) for each in one.outputs] == [("error", str(gate.fault))] * 2
    assert other.outputs[0].finish_reason == "length"
