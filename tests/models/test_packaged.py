"""The reference backend on the packaged models against transformers on the same weights.

Other backends are compared with it, so it must be right itself. The expected tokens are given as input rather than
generated, since a big model in eager torch is slow: if each token is the best after those before it, greedy decoding
generates them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError
from octavo.kernels.arrays import FloatArray
from octavo.kernels.reference.device import ReferenceDevice
from octavo.models.loader import open_checkpoint
from tests.models.drive import Driver, DriverSetting

HERE = Path(__file__).parent
CONTINUATIONS: dict[str, Any] = json.loads((HERE.parent / "data" / "greedy_reference.json").read_text())
LIKELIHOOD: dict[str, Any] = json.loads((HERE / "data" / "likelihood.json").read_text())


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def driver(name: str, one_torch_thread: None) -> Driver:
    """Of 32 rows: as many tokens at a time have their logits computed, and each time reads the whole vocabulary."""
    try:
        checkpoint = open_checkpoint(ModelConfig(model=name))
    except ModelLoadError as error:
        pytest.skip(str(error))
    setting = DriverSetting(max_model_len=256, max_num_tokens=512, max_num_seqs=32)
    return Driver(ReferenceDevice(), checkpoint.architecture, checkpoint, setting)


def run_in_pieces(driver: Driver, sequences: list[list[int]], first_row: int) -> list[FloatArray]:
    """The logits after every token of known sequences, run together in three steps, each sequence cut at random."""
    rng = np.random.default_rng(0)
    cuts = [sorted(rng.choice(np.arange(1, len(tokens)), size=2, replace=False)) for tokens in sequences]
    pieces = [np.split(np.array(tokens), cut) for tokens, cut in zip(sequences, cuts, strict=True)]
    steps = [driver.step({row: of_row[i].tolist() for row, of_row in enumerate(pieces, first_row)}) for i in range(3)]
    return [np.concatenate([step[first_row + i] for step in steps]) for i in range(len(sequences))]


def test_greedy_tokens(name: str, driver: Driver) -> None:
    """The first 24 of each answer."""
    cases = [(case["prompt_token_ids"], case["output_token_ids"][:24]) for case in CONTINUATIONS[name]]
    pieces = run_in_pieces(driver, [prompt + answer for prompt, answer in cases], first_row=0)
    for (prompt, answer), logits in zip(cases, pieces, strict=True):
        assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == answer


def test_likelihood_of_a_text(name: str, driver: Driver) -> None:
    text, expected = LIKELIHOOD[name]["text"], LIKELIHOOD[name]["nll"]
    [logits] = run_in_pieces(driver, [text], first_row=8)
    best = logits[:-1].max(axis=-1, keepdims=True)
    below = logits[:-1] - best
    nll = np.log(np.exp(below).sum(axis=-1, dtype=np.float64)) - below[range(len(text) - 1), text[1:]]
    assert nll.mean() == pytest.approx(expected, abs=1e-4)
