"""Measuring Octavo: the exact workload, and nothing of it known beforehand."""

from octavo import LLM
from octavo.bench.offline import measure_octavo
from octavo.bench.workloads import random_workload
from octavo.observe.events import Arrived, PrefixHit


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
