"""Packing: what an engine and its ranks send each other, as bytes.

    plans, results     in MessagePack, by msgspec: every step has one of each, with numbers for each of its sequences
    anything else      a pickle, and so is the rare part of a plan

A plan of 256 new block table entries takes milliseconds as a pickle, each entry being an object of its own.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from octavo.messages import BlockWrite, NewRow, StepPlan, StepResult
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import Thoughts

_PICKLE = 0x80  # how a pickle begins, and no MessagePack of these structures
_PLAN = 0x9D  # how an array of 13 begins


@dataclass(frozen=True, slots=True)
class NextStep:
    """A plan on its way to a rank. asked: a step before it, whose result is sent first; 0: none."""

    plan: StepPlan
    asked: int = 0


class _Row(msgspec.Struct, array_like=True):
    """A NewRow. params: which of the plan's."""

    params: int
    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    seed: int
    sample_index: int
    stop_token_ids: frozenset[int]
    bad_word_ids: tuple[tuple[int, ...], ...]
    grammar: str | None
    thoughts: Thoughts | None
    pools_tokens: bool
    second_text: int
    adapter: int


class _Plan(msgspec.Struct, array_like=True):
    """A NextStep. params: a pickle of the new rows' sampling parameters, once for neighbours that have the same. rest:
    a pickle of what else the plan has, by name."""

    asked: int
    step_id: int
    freed_rows: list[int]
    block_writes: list[BlockWrite]
    copies: list[tuple[int, int]]
    rows: list[int]
    num_computed_tokens: list[int]
    num_scheduled_tokens: list[int]
    num_logits: list[int]
    num_draws: list[int]
    new_rows: list[_Row]
    params: bytes
    rest: bytes


_ROW, _SAME = _Row.__struct_fields__[1:], _Plan.__struct_fields__[1:-3]
_of_row, _of_plan = attrgetter(*_ROW), attrgetter(*_SAME)
_REST = tuple(name for name in StepPlan.__dataclass_fields__ if name not in (*_SAME, "new_rows"))


def packed(message: Any) -> bytes:
    """A message as bytes."""
    if isinstance(message, NextStep):
        return _encoder.encode(_as_wire(message))
    if isinstance(message, StepResult):
        return _encoder.encode(message)
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Any:
    """The message that was packed."""
    if data[0] == _PICKLE:
        return pickle.loads(data)
    return _as_next(_plans.decode(data)) if data[0] == _PLAN else _results.decode(data)


def _as_wire(step: NextStep) -> _Plan:
    plan = step.plan
    params: list[SamplingParams] = []
    rows = [_as_row(row, params) for row in plan.new_rows]
    rest = {name: value for name in _REST if (value := getattr(plan, name))}
    values = step.asked, *_of_plan(plan), rows, _pickled(params), _pickled(rest)
    return _Plan(*values)


def _as_row(row: NewRow, params: list[SamplingParams]) -> _Row:
    if not params or row.sampling_params != params[-1]:
        params.append(row.sampling_params)
    return _Row(len(params) - 1, *_of_row(row))


def _as_next(wire: _Plan) -> NextStep:
    params = pickle.loads(wire.params) if wire.params else []
    rows = [NewRow(sampling_params=params[row.params], **_named(_ROW, _of_row(row))) for row in wire.new_rows]
    rest = pickle.loads(wire.rest) if wire.rest else {}
    return NextStep(StepPlan(new_rows=rows, **_named(_SAME, _of_plan(wire)), **rest), wire.asked)


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _pickled(what: Any) -> bytes:
    """Nothing of what is empty."""
    return pickle.dumps(what, pickle.HIGHEST_PROTOCOL) if what else b""


#: numbers and arrays of numpy are sent as Python's
_encoder = msgspec.msgpack.Encoder(enc_hook=lambda value: value.tolist())
_plans, _results = msgspec.msgpack.Decoder(_Plan), msgspec.msgpack.Decoder(StepResult)
