"""What a front end is told when it starts; by itself, so that the parent imports nothing that a front end does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.config import ModelConfig, ServerConfig


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
