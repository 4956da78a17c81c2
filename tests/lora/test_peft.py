"""Adapters that PEFT itself has made and saved: our answers are those of the model that PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from octavo import LLM, LoRARequest, SamplingParams
from tests.conftest import TinyFolder

peft: Any = pytest.importorskip("peft")
torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 9, 2, 44, 7], [101, 4]]
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 4, "enable_lora": True,
    "num_gpu_blocks_override": 20,
}  # fmt: skip
#: tiny model -> LoraConfig's arguments
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": "all-linear", "r": 3, "use_rslora": True}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "r": 2, "rank_pattern": {"q_proj": 4}}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 3, "alpha_pattern": {"qkv_proj": 1}}),
    ("gemma3", {"target_modules": ["v_proj", "down_proj"], "r": 4, "layers_to_transform": [1, 3]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    ("opt", {"target_modules": r".*\.(fc1|k_proj)", "r": 4}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_answers_are_those_of_the_merged_model(
    name: str, arguments: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(name))
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=8, init_lora_weights=False, **arguments)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapter = LoRARequest("a", 1, str(tmp_path / "adapter"))
    answers = []
    for folder, lora_request in ((tmp_path / "merged", None), (tiny_folder(name), adapter)):
        with LLM(str(folder), backend="cpu", **OPTIONS) as llm:
            outputs = llm.generate(PROMPTS, GREEDY, False, lora_request=lora_request)
            answers.append([one.outputs[0].token_ids for one in outputs])
    assert answers[0] == answers[1]
