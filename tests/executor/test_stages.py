"""Stages as processes: their answers are one rank's, and a stage that ends or stops ends the engine and is named."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from octavo import SamplingParams
from octavo.errors import EngineDeadError
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS, answers, engine
from tests.executor.conftest import asked_along
from tests.executor.test_ranks import workers_of
from tests.server.live import is_running, until

LONG = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, detokenize=False)


def test_answers_are_one_ranks_until_a_stage_stops(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch, sent: list[Any]
) -> None:
    """One that is killed: tests/server/test_stages.py."""
    monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", "2")
    with engine(tiny_folder("gemma2"), backend="cpu") as one:
        expected = [[choice[:3] for choice in output[:-1]] for output in answers(one)]
    with engine(tiny_folder("gemma2"), pipeline_parallel_size=2, backend="cpu", num_threads=1) as llm:
        assert [[choice[:3] for choice in output[:-1]] for output in answers(llm)] == expected
        asked, computing = asked_along(sent)
        assert computing
        assert not asked, "several steps are in flight, and a rank begins one before the last one is done"
        assert dict(llm.card)["ranks"].startswith("2, each with a part of one of 2 stages, exchanging by gloo: the CPU")
        assert llm.memory()["weights"] > 0
        workers = workers_of(os.getpid())
        stream = llm.stream(PROMPTS, LONG)
        next(iter(stream))
        os.kill(workers["worker 0"], signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(
            EngineDeadError, match=r"worker 0 \(rank 0 of 2, stage 0, on the CPU.*a signal has stopped it"
        ):
            list(stream)
        assert time.monotonic() - begin < 20
        until(lambda: not any(map(is_running, workers.values())))
    assert not workers_of(os.getpid())
