"""Logits processors: the functions of users that edit the logits of their own requests, called before a draw.

    logits of a step   row 3: [0.1 2.5 ...]  ── copied to the host ──▶  f(output token ids, logits) ──▶ new logits
                            └──────── + bias = new - old, where it differs ◀────────────┘

What they change goes into the draw as biases, which every backend adds to logits. So the model's own logits stay as
they are, for log-probabilities and for other samples that draw from the same row.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.columns import FloatArray, IntArray
from octavo.sampling_params import LogitsProcessor
from octavo.shown import cut

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

MAX_FAULT_LEN = 1000  # characters: an exception may say anything

#: of an entry's draw: token ids, each once, and what is added to their logits
Bias = tuple[IntArray, FloatArray]


class ProcessedRows:
    """The rows whose requests have logits processors, and what these made of the logits of their next draw.

    rows: by row, its functions, each with whether it takes the prompt, and its number of prompt tokens. faults: by row,
    what was wrong with one of them, until it is taken.
    """

    def __init__(self) -> None:
        self.rows: dict[int, tuple[list[tuple[LogitsProcessor, bool]], int]] = {}
        self.faults: dict[int, str] = {}
        self._failed: set[int] = set()
        self._biases: dict[tuple[int, int], Bias] = {}  # by row and position, of the last draw

    def set(self, row: int, processors: tuple[LogitsProcessor, ...], num_prompt_tokens: int) -> None:
        """Another sequence is in this row, or none if there are no functions."""
        self._failed.discard(row)
        self.faults.pop(row, None)
        if processors:
            self.rows[row] = [(one, takes_prompt(one)) for one in processors], num_prompt_tokens
        else:
            self.rows.pop(row, None)

    def run(
        self,
        rows: IntArray,
        logits_rows: IntArray,
        positions: IntArray,
        token_ids: IntArray,
        read: Callable[[IntArray], FloatArray],
    ) -> None:
        """Call the functions of each entry of a draw. read: copies rows of logits to the host, as float32."""
        self._biases = {}
        entries = [j for j, row in enumerate(rows.tolist()) if row in self.rows]
        if not entries:
            return
        for j, logits in zip(entries, read(logits_rows[entries]), strict=True):
            row, position = int(rows[j]), int(positions[j])
            found = None if row in self._failed else self._bias(row, token_ids[row], position, logits)
            self._biases[row, position] = _nothing_drawable(len(logits)) if found is None else found

    def add(self, row: int, position: int, runs: dict[str, Any]) -> None:
        """Add what the last `run` made to an entry's ragged columns."""
        if (bias := self._biases.get((row, position))) is None:
            return
        if "bias_ids" in runs:
            bias = _sum((runs["bias_ids"], runs["bias_values"]), bias)
        if len(bias[0]):
            runs["bias_ids"], runs["bias_values"] = bias

    def leave(self, rows: list[int]) -> None:
        """Sequences have left these rows."""
        for row in rows:
            self.set(row, (), 0)

    def take_faults(self) -> dict[int, str]:
        taken, self.faults = self.faults, {}
        return taken

    def _bias(self, row: int, token_ids: IntArray, position: int, logits: FloatArray) -> Bias | None:
        """None: a function failed."""
        processors, num_prompt_tokens = self.rows[row]
        prompt, output = token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:position]
        new = logits
        for place, (processor, has_prompt) in enumerate(processors):
            given = (prompt.tolist(), output.tolist()) if has_prompt else (output.tolist(),)
            try:
                new = _checked(processor(*given, new.copy()), logits.shape)
            except Exception as error:  # a user's function may raise anything
                what = str(error) if isinstance(error, _UnfitError) else f"raised {type(error).__name__}: {error}"
                self.faults[row] = cut(f"logits_processors[{place}] {what}", MAX_FAULT_LEN)
                self._failed.add(row)
                return None
        (changed,) = np.nonzero(new != logits)
        return changed.astype(np.int32), (new[changed] - logits[changed]).astype(np.float32)


def _nothing_drawable(vocab_size: int) -> Bias:
    return np.arange(vocab_size, dtype=np.int32), np.full(vocab_size, -np.inf, np.float32)


def _sum(one: Bias, other: Bias) -> Bias:
    ids, places = np.unique(np.concatenate((one[0], other[0])), return_inverse=True)
    values: FloatArray = np.zeros(len(ids), np.float32)
    np.add.at(values, places, np.concatenate((one[1], other[1])))
    return ids, values


class _UnfitError(Exception):
    """What a function returned are not logits."""


def takes_prompt(processor: LogitsProcessor) -> bool:
    """Whether it is (prompt ids, output ids, logits) in place of (output ids, logits)."""
    try:
        found = signature(processor).parameters.values()
    except (TypeError, ValueError):  # some functions of C tell nothing
        return False
    return sum(one.kind in _POSITIONAL and one.default is Parameter.empty for one in found) == 3


def _checked(returned: Any, shape: tuple[int, ...]) -> FloatArray:
    found: NDArray[Any] = np.asarray(returned)
    if returned is None or found.shape != shape or found.dtype.kind != "f":
        what = "None" if returned is None else f"numbers of type {found.dtype} and shape {found.shape}"
        raise _UnfitError(f"returned {what}, allowed are floats of shape {shape}: edit the logits and return them")
    new: FloatArray = found.astype(np.float32)
    if np.isnan(new).any() or np.isposinf(new).any():
        raise _UnfitError("returned NaN or infinity, allowed are numbers and -inf, which bans a token")
    return new
