"""The bound of prompt tokens that wait: which count, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from octavo.engine.core import EngineCore
from octavo.errors import EngineBusyError
from octavo.processes.queue_bounds import AdmissionControl
from octavo.request import Request, Sequence, SequenceId
from octavo.sampling_params import SamplingParams
from octavo.server_config import AdmissionConfig


def control(most: int) -> AdmissionControl:
    core: Any = SimpleNamespace(num_waiting=0, num_running=0)
    config = AdmissionConfig(max_num_queued_tokens=most)
    return AdmissionControl(config, cast(EngineCore, core), 8, lambda: 0.0)


def request(name: str, num_tokens: int) -> Request:
    return Request(name, [5] * num_tokens, SamplingParams(), seed=0, arrival_time=0.0, max_output_tokens=9)


def begin(one: Request) -> Sequence:
    one.sequences.append(Sequence(SequenceId(0), one, 0, list(one.prompt_token_ids)))
    return one.sequences[0]


def admit(admission: AdmissionControl, one: Request) -> Request:
    admission.check(one)
    admission.admitted(one)
    return one


def test_tokens_count_until_they_are_computed() -> None:
    admission = control(100)
    first, second = (admit(admission, request(name, 70)) for name in ("a", "b"))
    with pytest.raises(EngineBusyError, match="140 prompt tokens wait to be computed already, allowed are") as busy:
        admission.check(request("c", 1))
    assert busy.value.retry_after_s >= 1
    running = begin(first)
    running.num_computed_tokens = 40
    with pytest.raises(EngineBusyError, match=r"100 prompt tokens wait .* max_num_queued_tokens = 100; send"):
        admission.check(request("c", 1))
    running.num_computed_tokens = 41
    admit(admission, request("c", 500))
    running.num_computed_tokens = 70
    begin(second).num_computed_tokens = 73  # it generates
    with pytest.raises(EngineBusyError, match="500 prompt tokens wait"):
        admission.check(request("d", 1))


def test_a_request_that_left_no_longer_counts() -> None:
    """Also one that never had a sequence, as its grammar was still being compiled."""
    admission = control(10)
    gone = admit(admission, request("a", 10))
    with pytest.raises(EngineBusyError):
        admission.check(request("b", 1))
    admission.left(gone)
    admit(admission, request("b", 1))


def test_a_bound_of_zero_lets_one_prompt_at_a_time_in() -> None:
    admission = control(0)
    only = begin(admit(admission, request("a", 4000)))
    with pytest.raises(EngineBusyError, match=r"4000 prompt tokens wait .* = 0; send"):
        admission.check(request("b", 1))
    only.num_computed_tokens = 4000
    admit(admission, request("b", 1))
