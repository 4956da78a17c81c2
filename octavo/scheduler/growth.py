"""Growth: the blocks that running sequences will still want, kept free when another one asks to start.

    pool   │ a a a a │ b b │ c c c │ . . . . . . . . │
                                     a a b b c c c     expected growth, less what ends before: the rest may be taken

Whoever starts on blocks that others are about to grow into starts too early: somebody is preempted, and computed
twice. A sequence that nothing but its length can end grows to max_tokens. Any other is expected to get as long as
the recent ones did, and to end any moment once it is longer; until the first have ended nothing is expected.
A guess that is too low costs a preemption, one that is too high an idle block, never an answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike

from octavo.request import Request, Sequence
from octavo.scheduler.roster import num_seats

_MEMORY = 64  # sequences: an end this long ago weighs a third of the last one


class Growth:
    """Owner of the guess. conservativeness: a factor on what is expected; 0: start on whatever is free."""

    def __init__(self, conservativeness: float) -> None:
        self._conservativeness = conservativeness
        self._mean_output_len = 0.0
        self._num_ended = 0

    def guess_len(self, sequence: Sequence) -> None:
        """Note on a starting sequence how many tokens it is expected to end with."""
        request = sequence.request
        sequence.expected_len = request.num_prompt_tokens + self._output_len(request)

    def of(self, sequence: Sequence) -> int:
        """Tokens that a sequence, and the samples that will fork from it, are expected to still take."""
        return self._scaled(num_seats(sequence) * (sequence.expected_len - sequence.num_tokens))

    def of_all(self, running: Listlike[Sequence], forking: Listlike[Sequence]) -> int:
        """Tokens that all running sequences together will have more than now, when they have most: all gain one a step,
        once their prompts are computed, and one that ends gives back what it alone has. forking: those of them whose
        samples are still to come."""
        lives = [(one.expected_len - len(one.token_ids), _own_len(one)) for one in running]
        for one in forking:
            lives += [(one.expected_len - one.num_tokens, 0)] * (num_seats(one) - 1)
        lives = sorted((life for life in lives if life[0] > 0), reverse=True)
        given_back = sum(own for _, own in lives)
        most = 0
        for num_left, (steps, own) in enumerate(lives, 1):
            given_back -= own
            most = max(most, num_left * steps - given_back)
        num_to_compute = sum(max(0, len(one.token_ids) - one.num_computed_tokens - 1) for one in running)
        return self._scaled(most) + num_to_compute

    def ended(self, sequence: Sequence) -> None:
        """Learn from one that ended by itself. The first ones count alike, later ones fade."""
        self._num_ended += 1
        step = 1 / min(self._num_ended, _MEMORY)
        self._mean_output_len += (sequence.num_output_tokens - self._mean_output_len) * step

    def _output_len(self, request: Request) -> int:
        params = request.sampling_params
        if not request.stop_token_ids and not params.stop:
            return request.max_output_tokens
        return min(request.max_output_tokens, max(params.min_tokens, round(self._mean_output_len)))

    def _scaled(self, num_tokens: int) -> int:
        return round(self._conservativeness * max(0, num_tokens))


def _own_len(sequence: Sequence) -> int:
    """Tokens whose blocks nobody else is known to hold."""
    request = sequence.request
    num_shared = request.num_cached_tokens if request.sampling_params.n == 1 else request.num_prompt_tokens
    return len(sequence.token_ids) - num_shared
