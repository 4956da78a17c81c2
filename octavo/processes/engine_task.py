"""What the engine's process is told when it starts, and how front ends are named there.

By itself, so that the parent, which starts that process, imports nothing that the process does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.config import AdmissionConfig, EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTask:
    """address: the ZMQ endpoint that it opens. logs_stats: a line every few seconds on what it did.
    hang_timeout_s: after so many seconds of silence the parent takes it for hanging; 0: never. step_record: the file
    in which it says who is computed. num_deaths: fingerprint -> how many engines before it died at that request."""

    config: EngineConfig
    admission: AdmissionConfig
    address: str
    model_name: str
    logs_stats: bool
    hang_timeout_s: float
    run_directory: str
    step_record: str
    num_deaths: Mapping[str, int]


def front_end_identity(index: int, process_id: int) -> str:
    """A front end's name on the engine's socket. One that is started anew is another one."""
    return f"front-end-{index}-{process_id}"
