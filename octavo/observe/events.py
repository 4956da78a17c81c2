"""The event log: one frozen record for everything that happens in the engine, with its reason.

Metrics, reports, the flight recorder, golden tests and the pictures read only this log.
`time` is seconds of the engine's monotonic clock; `step` counts steps from 1.

No event holds text or tokens, unless a user asked for token ids. A new field goes to the end and has a default, so that
older files can be read (flight_log.py).
"""

from __future__ import annotations

from msgspec import Struct


class Event(Struct, frozen=True, array_like=True, tag=True, gc=False):
    time: float


class EngineStarted(Event, frozen=True):
    """The engine's sizes. num_blocks: without the null block. cache_options: others of the KV cache by vLLM's names, as
    text. windows: of the cache groups; None: full attention. is_overlapped: steps are planned while others run.
    num_stages: of a pipeline, each of which has a step. max_loras: adapter slots; 0: no request has an adapter."""

    num_blocks: int
    block_size: int
    block_bytes: int
    num_groups: int
    max_model_len: int
    enable_prefix_caching: bool = True
    cache_options: tuple[tuple[str, str], ...] = ()
    windows: tuple[int | None, ...] = (None,)
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    is_overlapped: bool = False
    num_stages: int = 1
    max_loras: int = 0

    @property
    def num_slots(self) -> int:
        """Tokens that the cache holds at once."""
        return self.num_blocks * self.block_size // self.num_groups


class Arrived(Event, frozen=True):
    """A request entered the waiting queue.

    arrival_time: when it reached our first process, on the same clock; None: with this event.
    max_tokens: the limit for each of its sequences. sequence_id: its first sequence; the others have the next ids.
    num_beams: 0 without beam search. can_stop: a token or text may end it, not only its length. is_fresh: it takes
    nothing from the prefix tree. has_prompt_logprobs: it takes nothing whose log-probabilities it wants.
    num_begun_tokens: output tokens that it begins with, as a copy of a branch that runs. adapter: the name of its
    adapter, if it has one; adapter_key: its number in the engine.
    """

    request_id: str
    num_prompt_tokens: int
    num_sequences: int
    arrival_time: float | None = None
    max_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    sequence_id: int = -1
    priority: int = 0
    num_beams: int = 0
    can_stop: bool = True
    min_tokens: int = 0
    is_fresh: bool = False
    has_prompt_logprobs: bool = False
    num_begun_tokens: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    adapter: str = ""
    adapter_key: int = 0


class Refused(Event, frozen=True):
    """A request was rejected on arrival; `why` is a word: invalid, queue_full, ..."""

    request_id: str
    why: str


class Waits(Event, frozen=True):
    """Why a request did not start this step, as `word: detail`; written when the reason changes, not every step."""

    request_id: str
    why: str


class Started(Event, frozen=True):
    """A sequence got a row, for the first time or again. passed: those that stood before it in the queue and wait."""

    sequence_id: int
    request_id: str
    row: int
    passed: tuple[int, ...] = ()


class Scheduled(Event, frozen=True, eq=False):
    """One step's grants, as columns: sequence i computes num_tokens[i] tokens from num_computed[i] on.

    While the same sequences decode, steps share one set of columns, so that a step costs the engine little: num_before
    is where the first of them was, and each sequence has come `ahead` tokens further since.
    """

    step: int
    sequence_ids: tuple[int, ...]
    num_before: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_waiting: int
    num_free_blocks: int
    ahead: int = 0

    @property
    def num_computed(self) -> tuple[int, ...]:
        ahead = self.ahead
        return tuple([number + ahead for number in self.num_before]) if ahead else self.num_before

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, however their columns are kept."""
        return type(other) is Scheduled and self._told() == other._told()

    def __ne__(self, other: object) -> bool:
        return not self == other  # a struct's own would compare by identity

    def __hash__(self) -> int:
        return hash(self._told())

    def _told(self) -> tuple[object, ...]:
        columns = self.sequence_ids, self.num_computed, self.num_tokens
        return self.time, self.step, *columns, self.num_waiting, self.num_free_blocks


class BlocksGiven(Event, frozen=True):
    """A sequence's table grew by these blocks."""

    sequence_id: int
    group: int
    block_ids: tuple[int, ...]


class PrefixHit(Event, frozen=True):
    """A sequence found num_tokens of its tokens in the prefix tree.

    block_ids: the found blocks, group after group. num_in_group: how many of them each group has; they are the last of
    num_tokens / block_size table entries, those before are null, behind the group's window. Empty: one group has all.
    """

    sequence_id: int
    num_tokens: int
    block_ids: tuple[int, ...]
    num_in_group: tuple[int, ...] = ()


class SoughtInVain(Event, frozen=True):
    """A sequence ended while it waited. It had looked for blocks of this content, from its first on."""

    sequence_id: int
    hashes: tuple[bytes, ...]


class BlocksPublished(Event, frozen=True):
    """Full blocks of a sequence entered the prefix tree, each the parent of the next; some may be in it already.

    parent: the block before the first one, 0 at the start of a sequence or behind its window. first: the place of the
    first one in the sequence's table. hashes: the blocks' content; equal ones mean equal tokens from the start on. In
    files they are scrambled with a key of the file's own.
    """

    sequence_id: int
    group: int
    parent: int
    block_ids: tuple[int, ...]
    first: int = 0
    hashes: tuple[bytes, ...] = ()


class BlocksCame(Event, frozen=True):
    """Blocks of a prompt came from another engine, or did not, and why. peer: that engine; empty: none was asked.
    num_tokens: those that need not be computed here. num_bytes: that travelled. seconds: since they were asked for."""

    request_id: str
    peer: str
    num_tokens: int
    num_bytes: int
    seconds: float
    why: str = ""


class AdapterAsked(Event, frozen=True):
    """Workers begin to read an adapter that requests wait for, by its number in the engine. dropped: numbers of others
    that they no longer keep."""

    adapter_key: int
    dropped: tuple[int, ...] = ()


class AdapterCame(Event, frozen=True):
    """All workers have read an adapter. fault: why they could not; empty: they keep it."""

    adapter_key: int
    fault: str = ""


class Forked(Event, frozen=True):
    """A child sequence shares all blocks of its parent."""

    parent_id: int
    sequence_id: int
    request_id: str
    num_shared_blocks: int


class Unforked(Event, frozen=True):
    """A beam is given up: its place goes to a fork of another beam, or all beams of its request begin again."""

    sequence_id: int
    request_id: str


class BlockCopied(Event, frozen=True):
    """Copy-on-write: the sequence wrote into a shared block. num_sharers: how many sequences held the source."""

    sequence_id: int
    source: int
    target: int
    num_sharers: int = 0


class BlocksFreed(Event, frozen=True):
    """A sequence released these blocks; `why` is finished, preempted, aborted, error, window or dropped."""

    sequence_id: int
    group: int
    block_ids: tuple[int, ...]
    why: str


class BlockEvicted(Event, frozen=True):
    """A cached block was evicted to make room."""

    block_id: int


class BlocksForgotten(Event, frozen=True):
    """These blocks left the prefix tree, though nobody needed room: their content is not trusted. None: all did."""

    block_ids: tuple[int, ...] | None


class Preempted(Event, frozen=True):
    """A running sequence gave up its blocks and waits again. Why:

    blocks (none was free for sequence `by`, perhaps itself), priority (`by` is better), fault (a step failed),
    alone (`by` runs alone after a fault) or rewound (it must compute again what its window has passed). -1: nobody.
    """

    sequence_id: int
    request_id: str
    num_lost_tokens: int
    why: str = ""
    by: int = -1


class Sampled(Event, frozen=True):
    """The sequences that got new tokens in a step. Finished events of sequences that ended come before this.

    num_tokens: the total. run_lens: how many each got; empty: one each. token_ids: all of them, if the log keeps them.
    num_forced: how many came without a draw or a forward pass, as grammars allowed no others.
    """

    step: int
    sequence_ids: tuple[int, ...]
    num_tokens: int
    run_lens: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    num_forced: int = 0


class FirstToken(Event, frozen=True):
    request_id: str


class EndAsked(Event, frozen=True):
    """Not a step ends a sequence, but a client or the output side. sequence_id -1: all of the request's."""

    request_id: str
    sequence_id: int
    reason: str


class Finished(Event, frozen=True):
    """A sequence ended. is_corrupted: no token could be drawn from its logits. fault: what went wrong, if anything."""

    sequence_id: int
    request_id: str
    reason: str
    num_output_tokens: int
    is_corrupted: bool = False
    fault: str = ""


class StepDone(Event, frozen=True):
    """A step's cost: seconds in schedule, execute and update, and the size of its batch."""

    step: int
    schedule_s: float
    execute_s: float
    update_s: float
    num_tokens: int
    num_seqs: int


class StepFailed(Event, frozen=True):
    """The workers could not carry out the steps in flight. Their sequences are preempted, or end."""

    fault: str


class EventsLost(Event, frozen=True):
    """The recorder could not write this many events: the disk was too slow, or a user's name is no valid text."""

    num_events: int
