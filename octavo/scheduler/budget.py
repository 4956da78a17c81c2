"""The token budget: how many tokens a step computes, and how many of them one sequence gets.

    max_num_batched_tokens = 8    │ d │ d │ d │ p p p p p │          three decodes, then 5 of a prompt's tokens

There are no phases: a sequence wants its tokens that are not computed yet, be it one or thousands.
"""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.errors import ConfigError, InvalidRequestError


class TokenBudget:
    """One step's tokens, refilled for each step."""

    def __init__(self, config: SchedulerConfig, size: int) -> None:
        threshold = config.long_prefill_token_threshold
        if threshold and not config.enable_chunked_prefill:
            raise ConfigError(
                f"long_prefill_token_threshold is {threshold} and enable_chunked_prefill is off, but a threshold cuts "
                "prompts into chunks: set the threshold to 0 or turn chunked prefill on"
            )
        self.size = size
        self.left = size
        self.longest_share = min(threshold, size) if threshold else size
        self._may_cut_prompts = config.enable_chunked_prefill

    def refill(self) -> None:
        self.left = self.size

    def share(self, num_wanted: int) -> int:
        """What a running sequence gets of the tokens it wants."""
        return min(num_wanted, self.left, self.longest_share)

    def first_share(self, num_wanted: int, is_resuming: bool) -> int:
        """What a starting sequence gets. Without chunked prefill a prompt comes whole or not at all; what is
        recomputed after a preemption may always be cut, or it could outgrow the budget for ever."""
        share = self.share(num_wanted)
        if share < num_wanted and not (self._may_cut_prompts or is_resuming):
            return 0
        return share

    def check_prompt(self, request_id: str, num_tokens: int) -> None:
        """Refuse a prompt that could never be computed."""
        if not self._may_cut_prompts and num_tokens > self.size:
            raise InvalidRequestError(
                f"request {request_id!r} has {num_tokens} prompt tokens, but without chunked prefill a prompt must fit "
                f"one step of {self.size} tokens: raise max_num_batched_tokens or set enable_chunked_prefill=True"
            )
