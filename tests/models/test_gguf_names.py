"""GGUF's tensor names against the gguf package's own table."""

from __future__ import annotations

import re
from dataclasses import replace

import gguf
import pytest

from octavo.models.gguf_config import FAMILIES
from octavo.models.gguf_names import NAMES, canonical_name
from octavo.models.registry import required_tensors
from tests.models.architectures import ARCHITECTURES
from tests.models.gguf_files import family_of, in_the_table


def test_every_family_that_is_read_has_its_names() -> None:
    assert set(NAMES) == set(FAMILIES)


@pytest.mark.parametrize("kind", NAMES)
def test_each_tensor_a_family_needs_is_found_under_its_gguf_name(kind: str) -> None:
    is_tied = kind.startswith("gemma")  # always tied, so GGUF has no name for a separate LM head
    family = ARCHITECTURES[family_of(kind)]
    experts = None if family.experts is None else replace(family.experts, dense_layers=frozenset())
    architecture = replace(family, tie_word_embeddings=is_tied, num_layers=12, windows=(), experts=experts)
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    table = gguf.get_tensor_name_map(code, architecture.num_layers)
    for name in required_tensors(architecture):
        theirs = table.get_name(in_the_table(kind, name), try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        assert canonical_name(kind, theirs) == re.sub(r"experts\.\d+\.", "experts.*.", name)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("rope_freqs.weight", None),
        ("rope_factors_long.weight", None),
        ("blk.0.attn_sinks.weight", "blk.0.attn_sinks.weight"),
        ("blk.x.attn_q.weight", "blk.x.attn_q.weight"),
        ("blk.0.attn_q", "blk.0.attn_q"),
        ("output.weight", "lm_head.weight"),
    ],
)
def test_other_names(name: str, canonical: str | None) -> None:
    assert canonical_name("llama", name) == canonical
