"""Tests of executors share what shows the messages that an engine has sent its ranks."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.executor.packing import NextStep
from octavo.executor.ranks import Ranks


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What engines have sent their ranks so far."""
    messages: list[Any] = []
    send = Ranks.send

    def spying(ranks: Ranks, message: Any) -> None:
        messages.append(message)
        send(ranks, message)

    monkeypatch.setattr(Ranks, "send", spying)
    return messages


def asked_along(sent: list[Any]) -> tuple[list[int], list[int]]:
    """The steps whose results were asked for with the next plan, and all that compute something."""
    steps = [message for message in sent if isinstance(message, NextStep)]
    return [step.asked for step in steps if step.asked], [step.plan.step_id for step in steps if step.plan.rows]
