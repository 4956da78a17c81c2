"""Octavo generates exactly the workload, with an empty prefix cache; rates are token counts over seconds."""

from pathlib import Path

import pytest

from octavo import LLM
from octavo.bench.offline import HuggingFaceModel, Measurement, check_lengths, measure_octavo, ratio_line
from octavo.bench.workloads import ragged16, random_workload
from octavo.errors import ConfigError
from octavo.observe.events import Arrived, PrefixHit

OURS = Measurement("octavo", seconds=2.0, num_requests=4, num_prompt_tokens=100, num_output_tokens=300)
THEIRS = Measurement("hf", seconds=6.0, num_requests=4, num_prompt_tokens=100, num_output_tokens=300)


def test_nothing_is_found_in_the_prefix_tree() -> None:
    with LLM("smollm2", max_model_len=128) as llm:
        workload = random_workload(2, 40, 3, n=2, vocab_size=llm.get_tokenizer().vocab_size)
        measured = measure_octavo(llm, workload, temperature=0.0)
        events = list(llm.events)
    assert not [event for event in events if isinstance(event, PrefixHit)]
    warm_up, *measured_arrivals = [event for event in events if isinstance(event, Arrived)]
    assert warm_up.num_sequences == 1
    assert [arrival.num_prompt_tokens for arrival in measured_arrivals] == [40, 40]
    assert measured.num_output_tokens == 12
    assert measured.engine == "octavo"


def test_an_answer_that_would_be_cut_is_not_measured() -> None:
    with LLM("smollm2", max_model_len=64) as llm:
        works = [random_workload(1, *lens, vocab_size=1000) for lens in ((50, 14), (50, 15))]
        check_lengths(llm, works[0])
        with pytest.raises(ConfigError, match="50 prompt tokens and 15 new ones, allowed are 64 together"):
            measure_octavo(llm, [*works[0], *works[1]], temperature=0.0)


def test_rates() -> None:
    record = OURS.record()
    assert record["requests_per_second"] == 2.0
    assert record["tokens_per_second"] == 200.0
    assert record["output_tokens_per_second"] == 150.0
    assert record["elapsed_time"] == 2.0
    assert record["total_num_tokens"] == 400


def test_lines() -> None:
    assert OURS.line() == (
        "octavo: 2.00 requests/s, 200.0 total tokens/s, 150.0 output tokens/s (100 in, 300 out, 2.00 s)"
    )
    assert ratio_line(OURS, THEIRS) == "octavo makes 3.00 times the output tokens/s of hf"


@pytest.mark.parametrize("n", [1, 3])
def test_hugging_face_makes_what_the_workload_asks_for(n: int, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=100, num_key_value_heads=1, **sizes)).save_pretrained(tmp_path)
    workload = ragged16(3, 4, n=n, vocab_size=100)
    measured = HuggingFaceModel(tmp_path, "auto").measure(workload, max_batch_size=2, temperature=0.0)
    assert measured.num_output_tokens == 12 * n
    assert measured.num_prompt_tokens == 16 + 24 + 32
