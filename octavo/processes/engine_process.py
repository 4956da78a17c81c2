"""An engine's process: it loads the model, says that it is ready, and runs its loop until its parent ends."""

from __future__ import annotations

from dataclasses import replace

from octavo.channel import Note
from octavo.child import begin, loading, telling_failures
from octavo.engine.assemble import build_engine
from octavo.observe.logging import LOGGER, log_to_stderr
from octavo.processes.engine_loop import EngineLoop


def main() -> None:
    """Run the process. It sends `ready`, or `failed` and why."""
    task, channel = begin()
    log_to_stderr(task.name)
    with telling_failures(channel), loading():
        # Front ends make text; an engine without a tokenizer starts sooner.
        config = replace(task.config, model=replace(task.config.model, skip_tokenizer_init=True))
        engine = build_engine(config, serves=task.serves, moves_blocks=task.traffic is not None)
        loop = EngineLoop(task, engine, channel)
    channel.send(Note("ready", card=engine.card, seconds=loop.heartbeat.patience_s))
    try:
        loop.run()
    except Exception as fault:
        if engine.recorder is not None:
            LOGGER.error("%s", engine.recorder.explain_fault(fault))
        raise
    finally:
        loop.close()
