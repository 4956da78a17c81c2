"""Replays a recorded run without weights: the real scheduler and cache, with the log's results in place of a model's.

    Arrived ──▶ add_request       Scheduled ──▶ schedule       StepDone ──▶ update, with as many tokens as were drawn
    what the scheduler and the cache then write into their own log must be what is in the file

The log has no tokens; replayed_tokens.py makes some that are alike where the recorded ones were. A log that has lost
its beginning is replayed from its first snapshot on (restored_engine.py), and at each later one the engine's whole
state must be the recorded one, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from octavo.errors import LogError, OctavoError
from octavo.messages import Candidates, LogprobRow, StepPlan, StepResult
from octavo.observe import events
from octavo.observe.event_log import EventLog
from octavo.observe.events import Event
from octavo.observe.flight_log import LogHeader
from octavo.observe.snapshot import Snapshot
from octavo.request import Sequence, SequenceId
from octavo.scheduler.step import NO_TOKEN
from octavo.shown import cut
from octavo.simulator.compared_events import ComparedEvents
from octavo.simulator.recorded_engine import MOST_SEQS, check_sizes, recorded_cache, recorded_scheduler
from octavo.simulator.replayed_tokens import ReplayedTokens, tokens_of_log
from octavo.simulator.restored_engine import restore_engine, unlike_state

#: opens the log; a replay reads it twice
OpenLog = Callable[[], tuple[LogHeader, Iterator[Event]]]

#: where blocks may enter the prefix tree
_DECIDES = frozenset((events.Scheduled, events.StepDone, events.StepFailed, events.EndAsked))


@dataclass(frozen=True, slots=True)
class Replayed:
    """num_steps: those that were decided alike. difference: the first that was not; None: all were alike."""

    num_steps: int
    num_events: int
    difference: str | None = None


def replay(open_log: OpenLog, config: dict[str, Any] | None = None) -> Replayed:
    """config: other options of the scheduler than the recorded ones. Raises LogError for a log that cannot be
    replayed."""
    header, log = open_log()[0], _replayable(open_log)
    check_sizes(header.started)
    tokens = tokens_of_log(log, header.started.block_size, header.started.max_model_len)
    engine = _ReplayedEngine(header, config or {}, tokens)
    try:
        for event in _replayable(open_log):
            engine.follow(event)
            if engine.compared.difference is not None:
                break
    except LogError:
        raise
    except (AssertionError, LookupError, TypeError, ValueError, OverflowError, OctavoError) as error:
        engine.compared.difference = f"the engine stopped: {type(error).__name__}: {error}"
    return Replayed(engine.num_steps, engine.compared.num_alike, engine.compared.difference)


def _replayable(open_log: OpenLog) -> Iterator[Event]:
    """The log's events, from one on at which a replay can begin."""
    header, log = open_log()
    if header.is_whole:
        return log
    why_not = "it has no snapshot of its engine"
    for event in log:
        if type(event) is Snapshot:
            if event.scheduler is not None:
                return itertools.chain([event], log)
            why_not = event.why_not
    raise LogError(
        f"the log does not begin with its engine, and no replay can begin later: {cut(why_not, 200)}. Write it with "
        "--record, from the beginning; octavo viz and octavo explain read this one"
    )


class _ReplayedEngine:
    def __init__(self, header: LogHeader, config: dict[str, Any], tokens: ReplayedTokens) -> None:
        sizes, own = header.started, EventLog(0)
        self._cache = recorded_cache(sizes, own)
        self._scheduler = recorded_scheduler(header, config, self._cache, own)
        self._tokens = tokens
        self._most_tokens = sizes.max_model_len
        self._is_overlapped = sizes.is_overlapped
        self._plans: dict[int, tuple[StepPlan, list[SequenceId]]] = {}
        self._runs: dict[int, int] = {}  # of the step whose update comes: sequence -> tokens
        self._has_failed = False
        self._is_new = True
        self.num_steps = 0
        self.compared = ComparedEvents()
        own.listen(self._take)
        self._own: dict[type[Event], Callable[[Any], None]] = {
            events.EndAsked: self._end,
            events.AdapterAsked: self._read_adapter,
            events.AdapterCame: self._read_adapter,
            events.Scheduled: self._schedule,
            events.StepDone: self._step_done,
            Snapshot: self._at_snapshot,
        }

    def follow(self, event: Any) -> None:
        """Do what the recorded engine did, and compare what comes of it."""
        kind = type(event)
        self._tokens.beams.follow(event)
        if kind in _DECIDES:
            self._tokens.settle_beams(self._scheduler.sequences)
        if kind is events.Arrived:
            if not 0 <= event.num_prompt_tokens <= self._most_tokens or not 1 <= event.num_sequences <= MOST_SEQS:
                raise LogError(f"a request has {event.num_prompt_tokens:,} tokens and {event.num_sequences:,} samples")
            self._scheduler.add_request(self._tokens.request(event))
        elif kind in self._own:
            self._own[kind](event)
        elif kind is events.Sampled:
            lens = event.run_lens or itertools.repeat(1)
            self._runs = dict(zip(event.sequence_ids, lens, strict=False))
            if max(self._runs.values(), default=0) > self._most_tokens:
                raise LogError(f"step {event.step} has a sequence with more tokens than max_model_len")
        elif kind is events.StepFailed:
            self._scheduler.fail(event.fault)
            self._plans.clear()
            self._has_failed = True  # it forgets the prefix tree, too
        elif kind is events.BlocksForgotten and event.block_ids is None:
            if not self._has_failed:
                self._cache.forget()
            self._has_failed = False
        self._is_new = False
        self.compared.add_told(event)

    def _at_snapshot(self, event: Snapshot) -> None:
        """Go on from the first one; at a later one, compare."""
        state = event.scheduler
        if state is None:
            return
        if not self._is_new:
            self.compared.difference = self.compared.difference or unlike_state(event, self._scheduler, self._cache)
            return
        restore_engine(event, state, self._tokens, self._scheduler, self._cache)
        for draft in state.drafts:
            plan = StepPlan(draft.step, num_draws=[*draft.num_draws], prompt_logprobs=[*draft.prompt_logprobs])
            plan.num_scheduled_tokens.extend(draft.num_scheduled)
            self._plans[draft.step] = plan, [SequenceId(one) for one in (*draft.granted, *draft.forked)]

    def _end(self, event: Any) -> None:
        if event.sequence_id < 0:
            self._scheduler.end_request(event.request_id, event.reason)
        else:
            self._scheduler.finish_sequence(event.sequence_id, event.reason)

    def _read_adapter(self, event: Any) -> None:
        awaited = self._scheduler.awaited
        if awaited is None:
            raise LogError("workers read an adapter, but the log's configuration has none")
        if type(event) is events.AdapterAsked:
            awaited.to_read()
        else:
            awaited.were_read(event.adapter_key, event.fault)

    def _schedule(self, event: Any) -> None:
        plan = self._scheduler.schedule()
        at_row = {one.row: one.sequence_id for one in self._scheduler.sequences if one.row >= 0}
        rows = plan.rows + [fork.row for fork in plan.fork_rows]
        self._plans[plan.step_id] = plan, [at_row[row] for row in rows]
        if self._is_overlapped and not plan.rows:
            self._update(plan.step_id)

    def _step_done(self, event: Any) -> None:
        self._update(event.step)

    def _update(self, step: int) -> None:
        plan, sequence_ids = self._plans.pop(step)
        known = {one.sequence_id: one for one in self._scheduler.sequences}
        runs: list[list[int]] = []
        for sequence_id, num_draws in zip(sequence_ids, plan.num_draws, strict=True):
            sequence, num_tokens = known.get(sequence_id), self._runs.get(sequence_id)
            if not num_draws or sequence is None:
                runs.append([0] * num_draws)
            elif num_tokens is None:
                runs.append([NO_TOKEN] if sequence_id in self._tokens.corrupted else [])
            else:
                runs.append(self._tokens.drawn(sequence, num_tokens))
        flat = [token for run in runs for token in run]
        rows = {entry: [LogprobRow([0], [0.0], 1)] * plan.num_scheduled_tokens[entry] for entry in plan.prompt_logprobs}
        offsets = [0, *accumulate(map(len, runs))]
        candidates = self._candidates(plan, sequence_ids, known)
        self._scheduler.update(plan, StepResult(step, flat, offsets, prompt_logprobs=rows, candidates=candidates))
        self._runs = {}
        self.num_steps += 1

    def _candidates(
        self, plan: StepPlan, sequence_ids: list[SequenceId], known: dict[SequenceId, Sequence]
    ) -> dict[int, Candidates]:
        """For the beams of each request, which are side by side in a plan."""
        found: dict[int, Candidates] = {}
        beams = [(entry, known[sequence_ids[entry]]) for entry in plan.candidates if sequence_ids[entry] in known]
        for _, of_request in itertools.groupby(beams, lambda one: one[1].request.request_id):
            entries, sequences = zip(*of_request, strict=True)
            found |= zip(entries, self._tokens.beams.candidates(list(sequences)), strict=False)
        return found

    def _take(self, event: Event) -> None:
        """What the replay did."""
        self.compared.add_made(event)
        if type(event) is events.BlocksPublished:
            self._tokens.beams.published(event)
