"""Columns: each is declared once, and everything that carries them is derived."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.kernels.cpu import library
from octavo.kernels.cpu.library import struct_columns
from octavo.kernels.reference.sampling import processed_logits
from octavo.sampling.columns import COLUMNS, ENTRY_WIDTH, FILTERS, NUMBERS, PARAMETERS, RAGGED, WORDS, batch_entries
from octavo.sampling_params import SamplingParams, parameters_that
from tests.kernels.test_sampling import make_batch

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("octavo", "csrc") for path in (ROOT / folder).rglob("*.*") if path.suffix != ".pyc"]
#: the number of files that may name a parameter: its declaration, its column, and each backend's arithmetic
AT_MOST = 6
#: other files that name a parameter, and why
USERS = {
    "top_p": {
        "octavo/observe/events.py": "OpenTelemetry has an attribute for it",
        "octavo/observe/lives.py": "the same",
        "octavo/observe/tracing.py": "the same",
        "octavo/scheduler/places.py": "the same",
        "octavo/server/anthropic.py": "Anthropic allows other values",
        "octavo/server/responses/protocol.py": "a response of OpenAI's tells it",
        "octavo/server/responses/routes.py": "the same",
        "octavo/worker/warm_up.py": "warms up with one that filters",
        "octavo/kernels/triton/sampling/parted_top_k.py": "cuts what ranks tell each other",
    },
    "min_p": {"octavo/kernels/triton/sampling/parted_top_k.py": "the same"},
    "top_k": {
        "octavo/kernels/vocabulary_parts.py": "ranks exchange as many tokens as it keeps",
        "octavo/kernels/triton/sampling/parted_top_k.py": "the same",
        "octavo/sampling/sampler.py": "tells where they suffice",
        "octavo/worker/warm_up.py": "warms up with one",
    },
    "repetition_penalty": {
        "octavo/server/ollama.py": "an option of Ollama's turns it off",
    },
}


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "temperature"])
def test_a_parameter_stands_in_six_files(name: str) -> None:
    """Except temperature, which is also a common word in comments and in the arithmetic of every score."""
    word = re.compile(rf"\b{name}\b")
    found = {str(path.relative_to(ROOT)) for path in SOURCES if word.search(path.read_text(encoding="utf-8"))}
    assert len(found - USERS.get(name, {}).keys()) <= AT_MOST, sorted(found)
    assert USERS.get(name, {}).keys() <= found, "an exception that is none any more"


def test_every_column_is_a_number_or_ragged() -> None:
    offsets = set(RAGGED.values())
    assert NUMBERS.keys() | RAGGED.keys() | offsets == COLUMNS.keys()
    assert not NUMBERS.keys() & (RAGGED.keys() | offsets)
    assert {one.name for one in fields(SamplingParams) if one.metadata["does"]} <= set(PARAMETERS)


def test_the_library_has_the_same_columns() -> None:
    assert dict(struct_columns(library.load())) == COLUMNS


def test_entries_hold_every_number_by_its_bits() -> None:
    batch = make_batch(3, temperature=[0.5, 0.0, 1.5], top_k=[5, 0, 7], seeds=[1, 2**64 - 1, 2**33])
    entries = batch_entries(batch)
    assert entries.shape == (3, ENTRY_WIDTH)
    for name, dtype in NUMBERS.items():
        words = np.ascontiguousarray(entries[:, WORDS[name] :][:, : np.dtype(dtype).itemsize // 4])
        assert words.view(dtype)[:, 0].tolist() == getattr(batch, name).tolist()
    assert not entries[:, WORDS["is_edited"]].any()


ACTING: list[tuple[str, dict[str, Any]]] = [
    ("has_filters", {"top_p": [1.0, 0.5]}),
    ("has_filters", {"top_k": [0, 3]}),
    ("has_filters", {"min_p": [0.0, 0.1]}),
    ("has_edits", {"history": [[], [3, 4]]}),
    ("has_edits", {"banned": [[], [3]]}),
]


@pytest.mark.parametrize(("does", "columns"), ACTING, ids=str)
def test_what_acts_is_seen(does: str, columns: dict[str, Any]) -> None:
    plain, batch = make_batch(2), make_batch(2, **columns)
    assert not plain.has_filters
    assert not plain.has_edits
    assert [name for name in ("has_filters", "has_edits") if getattr(batch, name)] == [does]
    edited = batch_entries(batch)[:, WORDS["is_edited"]].tolist()
    assert edited == ([0, 1] if does == "has_edits" else [0, 0])


def test_filters_and_edits_do_nothing_at_their_defaults() -> None:
    assert parameters_that("filters") == FILTERS
    params = SamplingParams(**FILTERS, **parameters_that("edits"))
    assert params == SamplingParams()
    assert not params.has_penalties
    batch = make_batch(1, history=[[3, 5]], prompt_lens=1)
    row = np.random.default_rng(0).normal(0.0, 1.5, 24).astype(np.float32)
    assert np.array_equal(processed_logits(row[None], batch), row[None])
