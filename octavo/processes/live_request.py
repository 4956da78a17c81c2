"""A request that has not ended, as the engine's process knows it: whose it is, and what its front end is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.engine.lazy_logprobs import pack_rows
from octavo.processes.transport import SequenceNews
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate


@dataclass(slots=True, eq=False)
class Live:
    """key: what its front end calls it."""

    front_end: bytes
    key: int
    request: Request
    fingerprint: str
    num_announced: int = 0  # of its sequences, those that its front end knows of
    num_finished: int = 0


def is_plain(update: SequenceUpdate, live: Live) -> bool:
    """One token and nothing else, of a request whose sequences its front end knows."""
    sequence = update.sequence
    return (
        sequence.finish_reason is None
        and not update.logprobs
        and len(update.token_ids) == 1
        and not update.prompt_logprobs
        and live.num_announced == len(sequence.request.sequences)
    )


def sequence_news(update: SequenceUpdate, live: Live) -> SequenceNews:
    """Of all else; its front end knows all of the request's sequences then."""
    sequence, request = update.sequence, live.request
    live.num_announced = len(request.sequences)
    return SequenceNews(
        key=live.key,
        index=sequence.index,
        token_ids=update.token_ids,
        num_sequences=live.num_announced,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        logprobs=list(update.logprobs),
        prompt_logprobs=pack_rows(update.prompt_logprobs),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        first_scheduled_time=request.first_scheduled_time,
    )
