"""The columns of a sampling batch, each declared once; everything that carries them is derived from this file.

    number   one value per entry           a parameter of the request, its logits row, its position, ...
    ragged   any number of values each     all values end to end, and the offsets [N + 1] between entries

A column named like a field of SamplingParams is that parameter. Derived from the columns are the rows of `sampler.py`,
the pointers passed to C++, and the entries that a device keeps:

    entry    logits row | position | seed (2) | sample index | ... | temperature | top_p | ...    32 bits each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.sampling_params import SamplingParams, parameters_that

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
SeedArray = NDArray[np.uint64]
_DTYPES: dict[str, type[np.generic]] = {"IntArray": np.int32, "FloatArray": np.float32, "SeedArray": np.uint64}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SamplingBatch:
    """What to do with N drawn tokens, one entry each. Numbers are [N]; the values of a ragged column's entry i are
    `values[offsets[i]:offsets[i+1]]`.

    Order of work, as in vLLM: allowed tokens, the mask, banned tokens, bias, penalties; temperature 0 takes the
    argmax; otherwise divide by temperature, then min_p, top_k, top_p, then draw.
    The draw: u = uniform(seed, sample_index, position), counter-based (see `kernels/reference/sampling.py`);
    the token is the first in id order whose cumulative kept probability exceeds u.
    """

    logits_rows: IntArray  # which row of logits to read; forks of one prompt share a row
    positions: IntArray  # the position the new token will have
    seeds: SeedArray
    sample_indices: IntArray
    prompt_lens: IntArray  # how many of an entry's history tokens are prompt
    temperature: FloatArray
    top_p: FloatArray
    top_k: IntArray
    min_p: FloatArray
    presence_penalty: FloatArray
    frequency_penalty: FloatArray
    repetition_penalty: FloatArray
    history: IntArray  # prompt then output tokens; only for entries with a penalty
    history_offsets: IntArray
    allowed: IntArray  # an empty run allows every token
    allowed_offsets: IntArray
    mask: IntArray  # a bit for each token, 32 a word, the lowest first; 1 allows it; an empty run allows all
    mask_offsets: IntArray
    banned: IntArray
    banned_offsets: IntArray
    bias_ids: IntArray
    bias_values: FloatArray
    bias_offsets: IntArray

    @property
    def has_edits(self) -> bool:
        """Whether any entry's logits are edited."""
        return any(len(getattr(self, name)) > 0 for name in RAGGED)

    @property
    def has_filters(self) -> bool:
        """Whether any entry's filters may cut tokens away."""
        return any(bool((getattr(self, name) != neutral).any()) for name, neutral in FILTERS.items())


#: each column of ragged values, and the column of its offsets
RAGGED = {
    "history": "history_offsets",
    "allowed": "allowed_offsets",
    "mask": "mask_offsets",
    "banned": "banned_offsets",
    "bias_ids": "bias_offsets",
    "bias_values": "bias_offsets",
}
#: every column's element type
COLUMNS = {one.name: _DTYPES[str(one.type)] for one in fields(SamplingBatch)}
NUMBERS = {name: dtype for name, dtype in COLUMNS.items() if name not in {*RAGGED, *RAGGED.values()}}
PARAMETERS = tuple(one.name for one in fields(SamplingParams) if one.name in NUMBERS)
#: the parameters that filter tokens, each with the value that keeps all
FILTERS = parameters_that("filters")

#: 32-bit words of an entry, with room for more numbers
ENTRY_WIDTH = 16


def _words() -> dict[str, int]:
    words, width = {}, 0
    for name, dtype in NUMBERS.items():
        words[name] = width
        width += np.dtype(dtype).itemsize // 4
    assert width < ENTRY_WIDTH, f"an entry of {width + 1} words does not fit into {ENTRY_WIDTH}"
    return {**words, "is_edited": width}


#: a number's first word in an entry, and the word that is 1 where logits are edited
WORDS = _words()


def entries_of(numbers: Mapping[str, NDArray[Any]], num_entries: int) -> IntArray:
    """The bits of number columns as entries [N, ENTRY_WIDTH]; columns that are not given are 0."""
    entries = np.zeros((num_entries, ENTRY_WIDTH), np.int32)
    for name, column in numbers.items():
        words = np.ascontiguousarray(column, NUMBERS[name]).view(np.int32).reshape(num_entries, -1)
        entries[:, WORDS[name] : WORDS[name] + words.shape[1]] = words
    return entries


def batch_entries(batch: SamplingBatch) -> IntArray:
    """A batch's numbers as entries; is_edited marks those whose logits are edited."""
    entries = entries_of({name: getattr(batch, name) for name in NUMBERS}, len(batch.logits_rows))
    for name in RAGGED.values() if batch.has_edits else ():
        entries[:, WORDS["is_edited"]] |= np.diff(getattr(batch, name)) > 0
    return entries


@dataclass(frozen=True, slots=True, eq=False)
class SameRows:
    """What a batch has of its rows alone, which is kept while steps have the same rows, as most have.

    Of N entries, one for each of the rows. key: knows the same rows again. columns: the numbers. edited: the entries
    with special needs. nothing: ragged columns without a value.

    Of those with a grammar: entries, found: the entries and their rows, which are `numbers` in a list. starts: where
    their outputs begin. counts: [N + 1] how many come before each entry.
    """

    key: tuple[int, bytes]
    columns: Mapping[str, NDArray[Any]]
    edited: list[int]
    nothing: Mapping[str, NDArray[Any]]
    reports_logprobs: bool
    entries: NDArray[np.intp]
    found: IntArray
    numbers: list[int]
    starts: IntArray
    counts: IntArray
