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
from typing import Any, get_type_hints

import msgspec

from octavo.messages import NewRow, StepPlan, StepResult
from octavo.sampling_params import SamplingParams

_PICKLE = 0x80  # how a pickle begins, and no MessagePack of these structures


@dataclass(frozen=True, slots=True)
class NextStep:
    """A plan on its way to a rank. asked: a step before it, whose result is sent first; 0: none."""

    plan: StepPlan
    asked: int = 0


#: what is sent of a new row, and of a plan, as it is
_ROW = tuple(name for name in NewRow.__dataclass_fields__ if name != "sampling_params")
_SAME = (
    *("step_id", "freed_rows", "block_writes", "copies", "rows", "num_computed_tokens", "num_scheduled_tokens"),
    *("num_logits", "num_draws"),
)


def _typed(kind: type, names: Sequence[str]) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(name, hints[name]) for name in names]


#: A NewRow. params: which of the plan's.
_Row: Any = msgspec.defstruct("_Row", [("params", int), *_typed(NewRow, _ROW)], array_like=True)
#: A NextStep. params: a pickle of the new rows' sampling parameters, once for neighbours that have the same. rest: a
#: pickle of what else the plan has, by name.
_Plan: Any = msgspec.defstruct(
    "_Plan",
    [("asked", int), *_typed(StepPlan, _SAME), ("new_rows", list[_Row]), ("params", bytes), ("rest", bytes)],
    array_like=True,
)
_PLAN = 0x90 + len(_Plan.__struct_fields__)  # how an array of so many, up to 15, begins
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
