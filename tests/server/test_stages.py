"""A server whose model is in stages: it streams, aborts, and starts again when a stage dies."""

import os
import signal
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from tests.executor.test_ranks import workers_of
from tests.server.live import Stream, is_running, live_and_clean, read_answer, until

pytest.importorskip("torch")  # stages meet by torch.distributed

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_tokens": 6}
LONG = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_it_answers_as_one_rank_and_ends_what_a_dead_stage_computed(tmp_path: Path) -> None:
    with LLM("smollm2", num_threads=1, max_model_len=2048) as llm:
        expected = llm.generate([PROMPT], SamplingParams(**GREEDY), use_tqdm=False)[0].outputs[0].text
    with live_and_clean(tmp_path, engine={"pipeline_parallel_size": 2}) as server:
        assert read_answer(server, prompt=PROMPT, params=GREEDY) == expected
        left = Stream(server, prompt="Once upon a time", params=LONG)
        left.start()
        left.close()
        until(lambda: b'num_requests_running{model_name="smollm2",engine="0"} 0' in server.get("/metrics")[1])

        streams = [Stream(server, prompt=f"{place} ink", params=LONG) for place in range(3)]
        for stream in streams:
            stream.start()
        workers = workers_of(server.children()["engine"])
        os.kill(workers["worker 1"], signal.SIGKILL)
        for stream in streams:
            assert "engine is down" in stream.rest()[-1]["error"]
            stream.close()
        server.wait_for_line(r"worker 1 \(rank 1 of 2, stage 1, on the CPU \(1 thread\)\) ended: signal 9 \(SIGKILL\)")
        until(server.is_healthy)
        until(lambda: not any(map(is_running, workers.values())))
        assert read_answer(server, prompt=PROMPT, params=GREEDY) == expected
