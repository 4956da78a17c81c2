"""The JSON-Schema test suite: what is generated for an accepted schema validates; others are refused by name.

The suite is in the sdist of the package jsonschema, which `make` puts beside the installed packages.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from octavo.errors import InvalidRequestError
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured_outputs import StructuredOutputsParams
from tests.structured.spelling_model import END, byte_compiler

SDISTS = Path(sys.prefix) / "sdists"
MAX_TOKENS, NUM_ANSWERS = 120, 3
DRAFTS = {"draft2020-12": Draft202012Validator, "draft7": Draft7Validator}
#: the fewest schemas of each draft that must be accepted, and of those with an answer that ended
LEAST = {"draft2020-12": (160, 160), "draft7": (155, 155)}


@cache
def suite(draft: str) -> list[Any]:
    sdists = sorted(SDISTS.glob("jsonschema-*.tar.gz"))
    if not sdists:
        command = f"pip download --no-deps --no-binary jsonschema -d {SDISTS} jsonschema"
        pytest.skip(f"the JSON-Schema test suite is not here: {command}")
    with tarfile.open(sdists[-1]) as archive:
        files = [one for one in archive.getmembers() if f"/json/tests/{draft}/" in one.name and one.isfile()]
        own = [one for one in files if "/optional/" not in one.name and one.name.endswith(".json")]
        found = [case["schema"] for one in own for case in json.load(archive.extractfile(one))]
    return [{"$schema": DRAFTS[draft].META_SCHEMA["$schema"], **one} for one in found if isinstance(one, dict)]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return byte_compiler(tmp_path_factory.mktemp("suite"))


def generated(compiler: GrammarCompiler, text: str) -> Iterator[str]:
    """Answers that were drawn at random, and ended."""
    vocabulary = compiler.vocabulary
    for seed in range(NUM_ANSWERS):
        matcher, draw, token_ids = compiler.matcher(text), np.random.default_rng(seed), list[int]()
        while len(token_ids) < MAX_TOKENS and not matcher.is_stopped():
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, count=vocabulary.size, bitorder="little"))
            assert len(allowed), "an answer that fits the grammar can go on, or ends"
            token_id = END if END in allowed and draw.random() < 0.5 else int(draw.choice(allowed))
            assert matcher.consume_token(token_id), matcher.get_error()
            token_ids.append(token_id)
        if matcher.is_stopped() and not matcher.is_error():
            own = [vocabulary.token_bytes[one] for one in token_ids if one != END]
            yield b"".join(own).decode("utf-8", "replace")


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_is_generated_validates(draft: str, compiler: GrammarCompiler) -> None:
    num_accepted, num_answered, refusals = 0, 0, list[str]()
    for schema in suite(draft):
        form = StructuredOutputsParams(json=json.dumps(schema), whitespace_pattern=" ?")
        try:
            text = grammar_text(form)
            compiler.matcher(text)
        except InvalidRequestError as refusal:
            refusals.append(str(refusal))
            continue
        num_accepted += 1
        answers = list(generated(compiler, text))
        num_answered += bool(answers)
        for answer in answers:
            DRAFTS[draft](schema).validate(json.loads(answer))
    least_accepted, least_answered = LEAST[draft]
    assert num_accepted >= least_accepted
    assert num_answered >= least_answered
    named = [re.search(r'Unimplemented keys: \["', one) is not None for one in refusals]
    assert sum(named) > len(refusals) / 2, "most are refused for a keyword, which is named"
