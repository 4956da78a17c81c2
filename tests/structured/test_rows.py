"""Rows with grammars against the library itself: the same masks, whatever happened to the row; and hostile grammars."""

from __future__ import annotations

import gc
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from octavo.errors import InvalidRequestError
from octavo.messages import END_OF_GRAMMAR, NewRow
from octavo.sampling_params import SamplingParams
from octavo.structured.compiler import MAX_KEPT, GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured.rows import ConstrainedRows
from octavo.structured.vocabulary import _Wrapped
from octavo.structured_outputs import StructuredOutputsParams
from tests.structured.spelling_model import END, byte_compiler

FORMS: list[dict[str, Any]] = [
    {"json": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}},
    {"regex": "(ab|c){2,9}"},
    {"choice": ["name", "names", "age"]},
    {"grammar": 'start: a\na: "(" a* ")"\n'},
    {"json_object": True},
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return byte_compiler(tmp_path_factory.mktemp("rows"))


def text_of(form: dict[str, Any]) -> str:
    return grammar_text(StructuredOutputsParams(**form))


def entered(compiler: GrammarCompiler, texts: list[str], **params: Any) -> ConstrainedRows:
    rows = ConstrainedRows()
    rows.compiler = compiler
    for row, text in enumerate(texts):
        rows.enter(NewRow(row, [5, 6], 2, SamplingParams(**params), seed=0, sample_index=0, grammar=text))
    return rows


def bits(mask: np.ndarray, size: int) -> np.ndarray:
    return np.unpackbits(mask.view(np.uint8), count=size, bitorder="little").astype(bool)


def test_masks_are_the_librarys_token_for_token(compiler: GrammarCompiler) -> None:
    """Over random answers, of which some are taken back, forked and begun anew."""
    texts, draw = [text_of(form) for form in FORMS], np.random.default_rng(0)
    size = compiler.vocabulary.size
    rows, outputs = entered(compiler, texts), [np.zeros(0, np.int32) for _ in texts]
    for _ in range(60):
        masks = rows.masks(range(len(texts)), outputs)
        for row, text in enumerate(texts):
            fresh = compiler.matcher(text)
            assert fresh.consume_tokens(outputs[row].tolist())
            expected = bits(np.frombuffer(fresh.compute_bitmask(), np.int32), size)
            assert np.array_equal(bits(masks[row], size), expected)
            assert not expected[compiler.vocabulary.special_ids].any() or expected[END]
            (allowed,) = np.nonzero(expected)
            if draw.random() < 0.2 or fresh.is_stopped() or END in allowed:
                outputs[row] = outputs[row][: draw.integers(0, len(outputs[row]) + 1)]
            else:
                outputs[row] = np.append(outputs[row], draw.choice(allowed)).astype(np.int32)
        if draw.random() < 0.2:
            rows.leave([0])
            rows.fork(0, parent=1)
            texts[0], outputs[0] = texts[1], outputs[1]


@pytest.mark.parametrize("regex", ["(?s:.*)", ".*", ".{0,9}x?", "(?s:[^b].*)", "[^\\n]+\\n?(?s:.+)"])
def test_texts_that_are_allowed_as_a_whole_change_no_mask(compiler: GrammarCompiler, regex: str) -> None:
    vocabulary, text, draw = compiler.vocabulary, text_of({"regex": regex}), np.random.default_rng(1)
    own = LLTokenizer(_Wrapped(vocabulary), eos_token=list(vocabulary.end_ids), slices=[])  # type: ignore[arg-type]
    for _ in range(6):
        matcher, plain = compiler.matcher(text), LLMatcher(own, text, log_level=0)
        for _ in range(20):
            mask = matcher.compute_bitmask()
            assert mask == plain.compute_bitmask()
            allowed = np.flatnonzero(bits(np.frombuffer(mask, np.int32), vocabulary.size))
            token_id = int(draw.choice(allowed))
            assert matcher.consume_token(token_id)
            assert plain.consume_token(token_id)
            if matcher.is_stopped():
                break


def test_guesses_of_one_row_get_masks_one_after_another(compiler: GrammarCompiler) -> None:
    rows = entered(compiler, [text_of({"regex": "abc"})])
    a, b, c = (compiler.vocabulary.encode(letter)[0] for letter in "abc")
    outputs = [np.array(output, np.int32) for output in ([], [a], [a, c], [a, b], [a])]
    masks = [np.flatnonzero(bits(mask, 300)).tolist() for mask in rows.masks([0] * 5, outputs)]
    assert masks == [[a], [b], [], [c], [b]]


def test_no_mask_is_left_of_a_guess_that_was_wrong(compiler: GrammarCompiler) -> None:
    """Both texts have as many lexemes, and the last one has the same state."""
    rows = entered(compiler, [text_of({"grammar": 'start: "a" NUM "x" | "b" NUM "y"\nNUM: /[0-9]+/\n'})])
    right, wrong = (np.array(compiler.vocabulary.encode(text), np.int32) for text in ("b1", "a1"))
    rows.masks([0], [wrong])
    (mask,) = rows.masks([0], [right])
    assert compiler.vocabulary.encode("y")[0] in np.flatnonzero(bits(mask, 300))
    assert compiler.vocabulary.encode("x")[0] not in np.flatnonzero(bits(mask, 300))


@pytest.mark.parametrize(("num", "threads_pay_s"), [(20, 0.0), (20, 9.0), (4, 9.0)])
def test_rows_of_a_grammar_have_the_masks_of_each(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, num: int, threads_pay_s: float
) -> None:
    """Made by several threads or here, as soon as tokens are read or later, also behind a token that did not fit and
    was taken back."""
    monkeypatch.setattr("octavo.structured.crew.THREADS_PAY_S", threads_pay_s)
    text, draw = text_of({"regex": "([ab]{3}c|d){40}"}), np.random.default_rng(0)
    rows = ConstrainedRows(num_threads=4)
    rows.compiler = compiler
    for row in range(num):
        rows.enter(NewRow(row, [5], 1, SamplingParams(), seed=0, sample_index=0, grammar=text))
    assert Counter(answer.lane for answer in rows.rows.values()) == ({0: 4} if num == 4 else dict.fromkeys(range(4), 5))
    numbers, outputs = list(range(num)), [np.zeros(0, np.int32)] * num
    fresh = [compiler.matcher(text) for _ in numbers]
    lens_before: list[int] = []
    for step in range(30):
        expected = [np.frombuffer(matcher.compute_bitmask(), np.int32) for matcher in fresh]
        lens = [len(output) for output in outputs]
        if step % 2:  # where the step before made masks, but forced nothing
            made = rows.made_ahead(numbers, lens)
            assert (made is not None) is (lens == lens_before)
            assert made is None or np.array_equal(made, expected)
        if step == 9:
            wrong = [np.append(outputs[3], END).astype(np.int32), *outputs[4:]]
            assert not rows.masks(range(3, num), wrong)[0].any()
        assert np.array_equal(rows.masks(numbers, outputs), expected)
        for row, mask in enumerate(expected):
            token_id = draw.choice(np.flatnonzero(bits(mask, compiler.vocabulary.size)))
            outputs[row] = np.append(outputs[row], token_id).astype(np.int32)
            assert fresh[row].consume_token(token_id)
        if step == 19:
            broken = [*outputs[:3], np.append(outputs[3][:-1], END).astype(np.int32), *outputs[4:]]
            rows.following(numbers, broken, [9] * num, rows.memory)
            assert rows.made_ahead(numbers, [len(output) for output in broken]) is None
        forced = [matcher.compute_ff_tokens() for matcher in fresh]
        lens_before = [len(output) for output in outputs]
        assert rows.following(numbers, outputs, [9] * num, None if step % 4 == 1 else rows.memory) == forced
        for row, tokens in enumerate(forced):
            outputs[row] = np.append(outputs[row], np.array(tokens, np.int32))
            assert fresh[row].try_consume_tokens(tokens) == len(tokens)
    rows.leave(numbers)
    rows.enter(NewRow(0, [5], 1, SamplingParams(), seed=0, sample_index=0, grammar=text))
    assert rows.rows[0].lane == 0


def test_what_must_follow(compiler: GrammarCompiler) -> None:
    encode = compiler.vocabulary.encode
    rows = entered(compiler, [text_of({"regex": "name(x|ytrue)"})])

    def following(output: Any, of: ConstrainedRows = rows) -> list[int]:
        return of.following([0], [output], [9])[0]

    start = np.array(encode("name"), np.int32)
    assert following(start) == []
    y = np.append(start, encode("y")).astype(np.int32)
    assert following(y) == [*encode("true"), END_OF_GRAMMAR]
    x = np.append(start, encode("x")).astype(np.int32)
    assert following(x) == [END_OF_GRAMMAR]
    assert following(np.append(start, END).astype(np.int32)) == []  # it does not fit
    reporting = entered(compiler, [text_of({"regex": "name(x|ytrue)"})], logprobs=1)
    assert following(y, reporting) == []


def test_an_ignored_end_is_drawn_only_where_nothing_else_may_be(compiler: GrammarCompiler) -> None:
    (a,) = compiler.vocabulary.encode("a")
    (b,) = compiler.vocabulary.encode("b")
    forms = {"a+": [a], "a[ab]*": sorted([a, b]), "a": [END]}
    for num in (1, 9):
        for ignores in (False, True):
            rows = entered(compiler, [text_of({"regex": regex}) for regex in forms] * num, ignore_eos=ignores)
            masks = rows.masks(range(3 * num), [np.array([a], np.int32)] * 3 * num)
            for mask, others in zip(masks, [*forms.values()] * num, strict=True):
                expected = others if ignores else sorted({*others, END})
                assert np.flatnonzero(bits(mask, 300)).tolist() == expected


def test_rows_that_have_answers_are_known_among_others(compiler: GrammarCompiler) -> None:
    text = text_of({"regex": "a+"})
    rows = entered(compiler, [text, text])
    assert rows.among([7, 1, 0]) == ([1, 2], [1, 0], [2, 2])
    rows.enter(NewRow(7, [5, 6, 7, 8], 3, SamplingParams(), seed=0, sample_index=0, grammar=text))
    assert rows.among([7, 1, 0]) == ([0, 1, 2], [7, 1, 0], [3, 2, 2])
    rows.fork(1, parent=7)
    assert rows.among([7, 1, 0]) == ([0, 1, 2], [7, 1, 0], [3, 3, 2])
    rows.leave([7])
    assert rows.among([7, 1, 0]) == ([1, 2], [1, 0], [3, 2])


def test_no_more_grammars_are_kept_than_there_is_room_for(tmp_path: Path) -> None:
    compiler = byte_compiler(tmp_path)
    texts = [text_of({"regex": f"a{index}"}) for index in range(MAX_KEPT + 5)]
    for text in texts:
        compiler.matcher(text)
    assert [compiler.knows(text) for text in texts] == [False] * 5 + [True] * MAX_KEPT


# ---------------------------------------------------------------- what a stranger may send

NAMES = st.sampled_from(["a", "b", "name", "é", "\n", '"', "\\", "", "start"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
_TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null", "nothing"])
_SIZES = st.integers(-1, 40) | st.just(10**9)
_KEYWORDS = {
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "multipleOf"), _SIZES),
    "type": _TYPES | st.lists(_TYPES, max_size=3), "enum": st.lists(JSON, max_size=3), "const": JSON,
    "pattern": st.text("ab(|)*+?.[]{}1,\\^$", max_size=12), "required": st.lists(NAMES, max_size=3),
    "format": st.sampled_from(["date", "email", "uuid", "what"]), "$ref": st.sampled_from(["#", "#/$defs/a", "x:y"]),
    "uniqueItems": st.booleans(), "unheardOf": JSON,
}  # fmt: skip
SCHEMAS = st.recursive(
    st.fixed_dictionaries({}, optional=_KEYWORDS) | st.booleans(),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **_KEYWORDS, "properties": st.dictionaries(NAMES, inner, max_size=3), "items": inner, "not": inner,
            **dict.fromkeys(("anyOf", "allOf", "oneOf", "prefixItems"), st.lists(inner, max_size=3)),
            "additionalProperties": inner, "$defs": st.dictionaries(NAMES, inner, max_size=2),
        },
    ),
    max_leaves=8,
)  # fmt: skip
REGEXES = st.text("ab(|)*+?.[]{}19,\\^$wdpL:=!<-", max_size=30)
GRAMMARS = st.lists(
    st.sampled_from(
        ["start:", "root ::=", "a:", "A:", "|", '"x"', "/y+/", "a", "A", "(", ")", "*", "+", "?", "{3}", "~", "\n",
         "%json",
         "{}", "%ignore", "[a-z]", "<s>", "@a", "&", ","]
    ),
    max_size=25,
).map(" ".join)  # fmt: skip
HOSTILE = st.one_of(
    SCHEMAS.map(lambda schema: {"json": schema}), REGEXES.map(lambda regex: {"regex": regex}),
    GRAMMARS.map(lambda grammar: {"grammar": grammar}), JSON.map(lambda tag: {"structural_tag": tag}),
    st.lists(st.text(max_size=9), max_size=4).map(lambda choice: {"choice": choice}),
    st.dictionaries(st.sampled_from(["json", "regex", "grammar", "choice", "json_object", "x"]), JSON, max_size=2),
)  # fmt: skip
SLOWEST_S = 2.0  # a bounded amount of work, on a busy machine


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=HOSTILE, seed=st.integers(0, 9))
def test_no_grammar_hangs_crashes_or_does_other_than_it_says(
    compiler: GrammarCompiler, form: dict[str, Any], seed: int
) -> None:
    """It is refused with our own error, or can be followed to its end or for a while."""
    begin = time.process_time()
    try:
        text = grammar_text(StructuredOutputsParams.of(form))
        rows = entered(compiler, [text])
        rows.masks([0], [np.zeros(0, np.int32)])
    except InvalidRequestError:
        return
    finally:
        assert time.process_time() - begin < SLOWEST_S, form
    draw, output = np.random.default_rng(seed), np.zeros(0, np.int32)
    while len(output) < 12:
        begin = time.process_time()
        (allowed,) = np.nonzero(bits(rows.masks([0], [output])[0], 300))
        if not len(allowed) or (token_id := draw.choice(allowed)) == END:
            break
        output = np.append(output, token_id).astype(np.int32)
        (following,) = rows.following([0], [output], [20])
        assert time.process_time() - begin < SLOWEST_S, form
        if following and following.pop() == END_OF_GRAMMAR:
            break


@pytest.mark.parametrize("number", ["0", "-3", "0.0", "1000000000", "1e9", "10.001", "0.00012345"])
def test_a_multiple_that_would_take_for_ever_is_refused(compiler: GrammarCompiler, number: str) -> None:
    schema = f'{{"multipleOf": {number}, "maximum": 1000000000}}'
    for name in ("multipleOf", "multiple\\u004ff"):
        for form in (
            {"json": schema.replace("multipleOf", name)},
            {"grammar": f"start: %json {schema}".replace("multipleOf", name)},
        ):
            with pytest.raises(
                InvalidRequestError, match=r"multipleOf is .*, allowed are numbers above 0 .* 10000 at most"
            ):
                compiler.matcher(text_of(form))
    for allowed in ("0.01", "250", "10000", "1e2"):
        compiler.matcher(text_of({"json": f'{{"type": "number", "multipleOf": {allowed}}}'}))


def test_compiling_does_not_leak(tmp_path: Path) -> None:
    compiler = byte_compiler(tmp_path)

    def compile_many(first: int) -> int:
        for index in range(first, first + 150):
            compiler.matcher(text_of({"regex": f"[a-z]{{{index}}}x*y"})).compute_bitmask()
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux

    compile_many(0)
    before = compile_many(150)
    assert compile_many(300) - before < 16 << 10
