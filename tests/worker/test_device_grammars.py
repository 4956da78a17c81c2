"""A device's rows with grammars, one step ahead of the host: whatever happens to the rows, each draw has the library's
masks, which mostly are made before the step's tokens are told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.messages import END_OF_GRAMMAR, NewRow, StepPlan
from octavo.sampling_params import SamplingParams
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured.rows import ConstrainedRows
from octavo.structured_outputs import StructuredOutputsParams
from octavo.worker.device_grammars import DeviceGrammars
from octavo.worker.launched_steps import LaunchedStep, LaunchedSteps
from octavo.worker.rows import LiveRows, RequestStates
from tests.structured.spelling_model import byte_compiler

NUM_ROWS, PROMPT = 4, [5, 6]
TEXTS = [
    grammar_text(StructuredOutputsParams(regex=regex))
    for regex in ("([ab]{9}cc|d){40}", "([v-z]|name=[0-9]){40}", "[a-z]{5}")
]


class Device:
    """Draws a random token under each mask, once it has compared it with the library's."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self.live = LiveRows(RequestStates(NUM_ROWS, 64, 16, 1), NUM_ROWS)
        self.live.grammars.compiler = compiler
        self.states, self.compiler = self.live.states, compiler
        self.launched = LaunchedSteps(self.states, NUM_ROWS, torch.device("cpu"))
        size = NUM_ROWS * (1 + compiler.vocabulary.num_words)
        model: Any = SimpleNamespace(token_masks=torch.zeros(size, dtype=torch.int32), chained=False)
        rows: Any = SimpleNamespace(touch=lambda rows: None)
        decodes: Any = self
        self.grammars = DeviceGrammars(model, self.live, rows, decodes, self.launched, NUM_ROWS)
        self.texts: dict[int, str] = {}
        self.drawing: list[tuple[int, int]] = []  # rows and positions
        self.random = np.random.default_rng(0)

    def enter(self, row: int, text: str | None) -> None:
        new = NewRow(row, PROMPT, len(PROMPT), SamplingParams(), seed=0, sample_index=0, grammar=text)
        self.live.apply(StepPlan(0, new_rows=[new]), None)  # type: ignore[arg-type]
        self.launched.enter([row])
        self.texts.pop(row, None)
        if text is not None:
            self.texts[row] = text

    def launch(self, rows: np.ndarray) -> LaunchedStep:
        self.launched.finish_draw()
        positions = self.states.num_tokens[rows]
        step = self.launched.add(StepPlan(0, rows=rows.tolist()), rows, positions)
        step.complete = self.grammars.force
        step.draw_late = partial(self.draw, rows, positions)
        return step

    def draw(self, rows: np.ndarray, positions: np.ndarray) -> Any:
        self.drawing = list(zip(rows.tolist(), positions.tolist(), strict=True))
        self.launched.fetch_all(but=self.launched._steps[-1])
        logits, entries = torch.zeros((NUM_ROWS, 1)), np.arange(len(rows), dtype=np.int32)
        return self.grammars.draw(logits, rows, entries, positions, is_step=True)

    def draw_masked(self, logits: Any, host: Any, *, has_filters: bool) -> None:
        rows, masks = host.copy(len(logits))
        tokens = np.full(len(logits), 7, np.int32)
        masked = [entry for entry, (row, _) in enumerate(self.drawing) if row in self.texts]
        assert rows.tolist() == masked + [-1] * (len(logits) - len(masked))
        for mask, entry in zip(masks.numpy(), masked, strict=False):
            row, position = self.drawing[entry]
            fresh = self.compiler.matcher(self.texts[row])
            assert fresh.consume_tokens(self.states.token_ids[row, len(PROMPT) : position].tolist())
            assert mask.tobytes() == fresh.compute_bitmask()
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            tokens[entry] = self.random.choice(allowed)
        host.tokens[: len(logits)] = torch.from_numpy(tokens)


def test_masks_are_made_ahead_while_rows_jump_end_and_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[list[int]] = []
    fill = ConstrainedRows.fill

    def counted(self: ConstrainedRows, made: Any, rows: list[int], outputs: Any) -> None:
        late.append(list(rows))
        fill(self, made, rows, outputs)

    monkeypatch.setattr(ConstrainedRows, "fill", counted)
    device = Device(byte_compiler(tmp_path))
    for row, text in enumerate([TEXTS[0], TEXTS[1], None, TEXTS[2]]):
        device.enter(row, text)
    rows, held = np.array([0, 1, 2, 3], np.int32), None
    num_forced, num_quiet, num_checked, has_ended = 0, 0, 0, False
    for step in range(50):
        num_late = len(late)
        if has_ended and 3 in rows and step < 20:
            device.live.grammars.leave([3])  # the step that is held was launched for it, too
            rows, num_quiet = np.array([0, 1, 2], np.int32), 0
        if step == 20:
            device.enter(3, TEXTS[0])
            rows, num_quiet = np.array([3, 0, 1, 2], np.int32), 0
        launched = device.launch(rows)
        assert num_quiet < 2 or len(late) == num_late
        if held is not None:
            result = held.result()
            num_forced += sum(result.num_forced.values())
            num_quiet = 0 if result.num_forced else num_quiet + 1
            has_ended |= END_OF_GRAMMAR in result.sampled_token_ids
            assert num_quiet < 3 or len(late) == num_late
            num_checked += num_quiet >= 3
        held = launched
    assert has_ended
    assert num_forced > 9
    assert num_checked > 3
