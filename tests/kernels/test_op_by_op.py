"""Steps run op by op: the same tokens, a line for each op, and arrays in the model's own Python."""

from __future__ import annotations

import re

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.kernels.ops import Ops, Tensor
from octavo.layers.blocks import GatedMLP
from tests.conftest import TinyFolder

PROMPT = [5, 6, 7]
GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, detokenize=False)
LINE = re.compile(
    r"(?P<op>\w+) +(?P<names>.*?) +(?P<inputs>(\[\d+, \d+\] )*)-> (\[\d+, \d+\] ?)+ norm [\d.e+-]+( [\d.e+-]+)?"
)


def generate(folder: object, backend: str, **options: bool) -> list[int]:
    with LLM(str(folder), backend=backend, skip_tokenizer_init=True, max_model_len=32, **options) as llm:
        (output,) = llm.generate([PROMPT], GREEDY, use_tqdm=False)
    return list(output.outputs[0].token_ids)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_op_of_every_step_is_reported(
    backend: str, tiny_folder: TinyFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama")
    plain = generate(folder, backend)
    capfd.readouterr()
    assert generate(folder, backend, trace_ops=True) == plain
    lines = [LINE.fullmatch(line) for line in capfd.readouterr().err.splitlines() if " -> " in line]
    assert all(lines), "a line has a name, shapes and a norm"
    ops = [line["op"] for line in lines if line]
    first = ["embedding", "rms_norm", "linear", "rotary_kv_write", "paged_attention", "linear", "add_rms_norm"]
    assert ops[:7] == first
    assert ops.count("embedding") == len(plain), "one per step"
    down = next(line for line in lines if line and line["names"].endswith("mlp.down_proj"))
    assert down["inputs"].startswith("[3, "), "the prompt's three tokens"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_models_code_sees_each_steps_values(
    backend: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch, inline_executor: None
) -> None:
    """In layers/blocks.py, where a debugger would stop, a tensor has the step's tokens and real values."""
    seen, call = [], GatedMLP.__call__

    def stop(self: GatedMLP, ops: Ops, x: Tensor) -> Tensor:
        if hasattr(x, "shape"):
            seen.append((len(x), bool(np.isfinite(np.asarray(x)).all())))
        return call(self, ops, x)

    monkeypatch.setattr(GatedMLP, "__call__", stop)
    generate(tiny_folder("llama"), backend, trace_ops=True)
    num_layers = len(seen) // 3
    # the last layer's MLP runs only for the token whose logits are needed
    prompt = [(3, True)] * (num_layers - 1) + [(1, True)]
    assert seen == prompt + [(1, True)] * 2 * num_layers
