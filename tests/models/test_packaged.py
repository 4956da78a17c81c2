"""The packaged models against transformers' own results on the same weights.

With float32 weights every token is the same; with the file's quantised weights a backend may round activations,
so there the likelihood of a text is what must hold. The expected values were computed once, see the data file.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.config import DTypeOption, ModelConfig
from octavo.errors import ModelLoadError
from octavo.kernels.ops import Backend, FloatArray
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.testing.drive import Driver, DriverSetting, greedy

EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "packaged_models.json").read_text())["models"]
SETTING = DriverSetting(max_model_len=512, max_num_tokens=512)

pytestmark = pytest.mark.parametrize("name", EXPECTED)


def open_packaged(name: str, dtype: DTypeOption) -> Checkpoint:
    try:
        return open_checkpoint(ModelConfig(model=name, dtype=dtype))
    except ModelLoadError as error:
        pytest.skip(str(error))


def run_in_chunks(driver: Driver, sequences: list[list[int]], seed: int = 0) -> list[FloatArray]:
    """Logits after every token of known sequences, all run together and cut at random places."""
    rng = np.random.default_rng(seed)
    cuts = [sorted(rng.choice(np.arange(1, len(tokens)), size=2, replace=False)) for tokens in sequences]
    parts = [np.split(np.array(tokens), cut) for tokens, cut in zip(sequences, cuts, strict=True)]
    steps = [driver.step({row: list(pieces[i]) for row, pieces in enumerate(parts)}) for i in range(3)]
    return [np.concatenate([step[row] for step in steps]) for row in range(len(sequences))]


def mean_nll(driver: Driver, text: list[int]) -> float:
    [logits] = run_in_chunks(driver, [text])
    logprobs = torch.log_softmax(torch.from_numpy(logits[:-1]).double(), dim=-1)
    return float(-logprobs[range(len(text) - 1), text[1:]].mean())


def test_float32_computation_gives_the_same_tokens_and_likelihood(name: str, backend: Backend) -> None:
    expected = EXPECTED[name]
    dtype: DTypeOption = "auto" if backend.name == "reference" else "float32"  # the reference always dequantises
    checkpoint = open_packaged(name, dtype)
    driver = Driver(backend, checkpoint.architecture, checkpoint, SETTING)
    prompts = [case["prompt"] for case in expected["continuations"]]
    wanted = [case["tokens"] for case in expected["continuations"]]
    if backend.name == "reference":  # follow the expected tokens: if each is the best, greedy decoding finds them
        logits = run_in_chunks(driver, [prompt + tokens for prompt, tokens in zip(prompts, wanted, strict=True)])
        found = [x[len(prompt) - 1 : -1].argmax(-1).tolist() for prompt, x in zip(prompts, logits, strict=True)]
        for row in range(len(prompts)):
            driver.free(row)
    else:
        continuations, _ = greedy(driver, prompts, max(map(len, wanted)), max_chunk=16)
        found = [tokens[: len(want)] for tokens, want in zip(continuations, wanted, strict=True)]
    assert found == wanted
    assert mean_nll(driver, expected["text"]) == pytest.approx(expected["nll"], abs=1e-4)


def test_quantised_computation_keeps_the_likelihood(name: str, backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the reference computes on quantised weights as on float32 ones")
    checkpoint, expected = open_packaged(name, "auto"), EXPECTED[name]
    driver = Driver(backend, checkpoint.architecture, checkpoint, SETTING)
    assert mean_nll(driver, expected["text"]) == pytest.approx(expected["nll"], rel=1e-2)


def test_expected_values_are_of_the_model_they_name(name: str) -> None:
    vocab_size = open_packaged(name, "auto").architecture.vocab_size
    tokens = chain(EXPECTED[name]["text"], *(case["tokens"] for case in EXPECTED[name]["continuations"]))
    assert max(tokens) < vocab_size
    assert len(EXPECTED[name]["text"]) == 256
