"""What the engine's process and front ends are told when they start, and how front ends are named at the engine.

By itself, so that the parent, which starts those processes, imports nothing that they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.config import AdmissionConfig, EngineConfig, ModelConfig, ServerConfig


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndTask:
    """
    listening_fd: the socket that all front ends share. app, settings: "module:function" that makes the ASGI app of
    (client, settings). seed: of the random numbers of requests that bring none.
    """

    index: int
    seed: int
    model: ModelConfig
    server: ServerConfig
    app: str
    settings: Any
    listening_fd: int
    run_directory: str


def front_end_identity(index: int, process_id: int) -> str:
    """A front end's name on the engine's socket. One that is started anew is another one."""
    return f"front-end-{index}-{process_id}"
