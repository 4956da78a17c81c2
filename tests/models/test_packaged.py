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
from octavo.kernels.ops import FloatArray
from octavo.kernels.reference.device import ReferenceDevice
from octavo.models.loader import open_checkpoint
from tests.models.drive import Driver, DriverSetting

HERE = Path(__file__).parent
CONTINUATIONS: dict[str, Any] = json.loads((HERE.parent / "data" / "greedy_reference.json").read_text())
LIKELIHOOD: dict[str, Any] = json.loads((HERE / "data" / "likelihood.json").read_text())

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"]),
]


def reference_driver(name: str) -> Driver:
    try:
        checkpoint = open_checkpoint(ModelConfig(model=name))
    except ModelLoadError as error:
        pytest.skip(str(error))
    setting = DriverSetting(max_model_len=256, max_num_tokens=512)
    return Driver(ReferenceDevice(), checkpoint.architecture, checkpoint, setting)


def run_in_pieces(driver: Driver, sequences: list[list[int]]) -> list[FloatArray]:
    """The logits after every token of known sequences, run together in three steps, each sequence cut at random."""
    rng = np.random.default_rng(0)
    cuts = [sorted(rng.choice(np.arange(1, len(tokens)), size=2, replace=False)) for tokens in sequences]
    pieces = [np.split(np.array(tokens), cut) for tokens, cut in zip(sequences, cuts, strict=True)]
    steps = [driver.step({row: of_row[i].tolist() for row, of_row in enumerate(pieces)}) for i in range(3)]
    return [np.concatenate([step[row] for step in steps]) for row in range(len(sequences))]


def test_greedy_tokens(name: str) -> None:
    cases = CONTINUATIONS[name]
    sequences = [case["prompt_token_ids"] + case["output_token_ids"] for case in cases]
    for case, logits in zip(cases, run_in_pieces(reference_driver(name), sequences), strict=True):
        best = logits[len(case["prompt_token_ids"]) - 1 : -1].argmax(axis=-1)
        assert best.tolist() == case["output_token_ids"]


def test_likelihood_of_a_text(name: str) -> None:
    text, expected = LIKELIHOOD[name]["text"], LIKELIHOOD[name]["nll"]
    [logits] = run_in_pieces(reference_driver(name), [text])
    logits = logits[:-1].astype(np.float64)
    best = logits.max(axis=-1, keepdims=True)
    log_norm = best[:, 0] + np.log(np.exp(logits - best).sum(axis=-1))
    nll = log_norm - logits[range(len(text) - 1), text[1:]]
    assert nll.mean() == pytest.approx(expected, abs=1e-4)
