"""What the engine remembers: a Request is what a user asked for, a Sequence is one stream of generated tokens.

    Request "a", n=3
      ├── Sequence 0   prompt | tokens ...      prefills the prompt; the others fork from it
      ├── Sequence 1   prompt | tokens ...
      └── Sequence 2   prompt | tokens ...

The scheduler owns and changes both; everyone else reads.
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import NewType

from octavo.lora_request import LoadedAdapter, LoRARequest
from octavo.outputs import FinishReason
from octavo.pooling_params import PooledForm, PoolingParams
from octavo.repetition import RepeatCounts
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import Thoughts

SequenceId = NewType("SequenceId", int)
RequestId = str


class SequenceState(Enum):
    """waiting -> running -> finished; preempt moves running back to waiting."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens.

    token_ids: prompt and output together, the engine's only copy.
    num_computed_tokens: how many of them have keys and values in the cache. A sequence is decoding if all but its last
    token are computed; there is no other notion of phase.
    num_pending: tokens that steps in flight are drawing: their positions are planned before they are known.
    spec_token_ids: guesses at its next tokens. The step that computes them keeps those that it draws too, and one more.
    Until its result is known the sequence waits, as its next position is unknown.
    max_len: the most tokens, prompt and output, that it may have.
    expected_len: how many it was expected to end with when it last started.
    row: its permanent row in the worker while running, else -1.
    repeats: of its output, once it has any, if its request has repetition_detection.
    """

    sequence_id: SequenceId
    request: Request
    index: int
    token_ids: list[int]
    num_computed_tokens: int = 0
    num_pending: int = 0
    spec_token_ids: list[int] = field(default_factory=list)
    max_len: int = 0
    expected_len: int = 0
    state: SequenceState = SequenceState.WAITING
    row: int = -1
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    repeats: RepeatCounts | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.request.num_prompt_tokens

    @property
    def num_seats(self) -> int:
        """Its own, and those of its request's samples or beams that have not forked."""
        return 1 + self.request.sampling_params.num_sequences - len(self.request.sequences)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.request.num_prompt_tokens :]


@dataclass(slots=True, eq=False)
class Request:
    """What was asked, checked and tokenised.

    seed: the 64-bit key of its random numbers, the user's or one the engine drew.
    stop_token_ids: every token that ends a sequence, the model's end tokens included unless ignored.
    max_output_tokens: max_tokens cut to what the model's context leaves.
    banned_until_min_tokens: tokens that may not be drawn before min_tokens.
    bad_word_ids: token sequences that may not be completed.
    grammar: what its output must match. thoughts: what comes before that. pooling_params: of a request for an
    embedding or classes; it gets no output tokens. second_text: where the second of a pair of texts begins; 0: there
    is one text.
    begun_token_ids: output tokens that it begins with: those of the running request that it forks from. first_len:
    how many tokens its first sequence begins with.
    lora_request: the adapter that it asks for; adapter: as its engine has found it.
    data_parallel_rank: of several engines, the one that must compute it; None: any. trace_headers: its caller's trace,
    for an engine in another process.
    """

    request_id: RequestId
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    seed: int
    arrival_time: float
    max_output_tokens: int
    prompt: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str | None = None
    thoughts: Thoughts | None = None
    pooling_params: PoolingParams | None = None
    second_text: int = 0
    begun_token_ids: Listlike[int] = ()
    sequences: list[Sequence] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    first_scheduled_time: float | None = None
    data_parallel_rank: int | None = None
    trace_headers: dict[str, str] | None = None
    lora_request: LoRARequest | None = None
    adapter: LoadedAdapter | None = None
    first_len: int = field(init=False)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def is_constrained(self) -> bool:
        """Whether its output has a form, which may allow but one token."""
        return self.grammar is not None or self.thoughts is not None

    def __post_init__(self) -> None:
        self.begin_with(self.begun_token_ids)

    def begin_with(self, token_ids: Listlike[int]) -> None:
        """Set begun_token_ids, before its sequences are made."""
        self.begun_token_ids = token_ids
        self.first_len = len(self.prompt_token_ids) + len(token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the engine can serve. enable_prefix_caching: whether a request finds the blocks of earlier ones. pooled:
    what its embeddings are; None: it generates text instead. enable_lora: whether requests may have adapters.
    lora_root: the folder from which clients may load them."""

    max_model_len: int
    max_num_seqs: int
    max_logprobs: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    enable_prefix_caching: bool = True
    pooled: PooledForm | None = None
    enable_lora: bool = False
    lora_root: str | None = None


def least_limits(one: RequestLimits, other: RequestLimits) -> RequestLimits:
    """What two engines with the same model and options can both serve: their memory may differ."""
    return replace(
        one,
        max_model_len=min(one.max_model_len, other.max_model_len),
        max_num_seqs=min(one.max_num_seqs, other.max_num_seqs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(RequestLimits):
    """What a client may ask about the loaded model.

    default_sampling_params: from the checkpoint's generation config. card: the start-up card.
    """

    default_sampling_params: SamplingParams
    card: list[tuple[str, str]]

    @classmethod
    def of(cls, limits: RequestLimits, default: SamplingParams, card: list[tuple[str, str]]) -> ModelInfo:
        own = {one.name: getattr(limits, one.name) for one in fields(limits)}
        return cls(**own, default_sampling_params=default, card=card)
