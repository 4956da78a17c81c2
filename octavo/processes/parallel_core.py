"""ParallelCore: several engines in child processes, which an LLM uses as if they were one.

    LLM ── LLMEngine ── ParallelCore ── router.py ──┬──▶ engine 0     each a process with its scheduler, cache and model
                                                    └──▶ engine 1

A step takes what the engines have sent. If one dies, requests of which it has reported nothing begin anew, on another;
the rest of its requests end with finish_reason "error". It is restarted meanwhile.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from octavo.channel import Note
from octavo.config import DataParallelRouting
from octavo.engine.core_protocol import EngineStats, total_stats
from octavo.engine.lazy_logprobs import unpack_rows
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.observe.exposition import Metric, joined
from octavo.processes import transport
from octavo.processes.engine_link import mirrored
from octavo.processes.offline_engines import OfflineEngines
from octavo.processes.probation import refusal
from octavo.processes.router import Router, Ticket, prompt_pieces
from octavo.request import Request, Sequence, SequenceId
from octavo.scheduler.step import SequenceUpdate

#: seconds that a step waits for news; then other threads' calls have their turn
STEP_S = 0.01


@dataclass(slots=True, eq=False)
class _Sent:
    """An unfinished request at an engine. has_news: the engine has reported some of it. ended: indices of its sequences
    that have ended."""

    key: int
    request: Request
    ticket: Ticket
    has_news: bool = False
    ended: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Loss:
    """An engine went down with these requests, behind what it had reported of them."""

    requests: list[_Sent]
    note: Note


class ParallelCore:
    """Owner of the engines and of the router. A Core of engine/core.py, and EngineRecords of observe/exposition.py."""

    def __init__(self, engines: OfflineEngines, routing: DataParallelRouting = "prefix") -> None:
        self._engines = engines
        self._router = Router(len(engines.welcomes), routing)
        for engine, welcome in enumerate(engines.welcomes):
            self._router.goes_up(engine, welcome.num_cache_tokens)
        self._numbers = itertools.count()
        self._ids = map(SequenceId, itertools.count())
        self._held: deque[Request] = deque()  # while no engine serves
        self._sent: dict[int, _Sent] = {}
        self._by_id: dict[str, _Sent] = {}
        self._by_sequence: dict[SequenceId, tuple[_Sent, int]] = {}
        self._queues: list[deque[transport.Down | _Loss]] = [deque() for _ in engines.welcomes]
        self._updates: list[SequenceUpdate] = []
        self._answers: dict[int, bytes] = {}

    def add_request(self, request: Request) -> None:
        pieces = prompt_pieces(request)
        ticket = self._router.choose(pieces, request)
        if ticket is None:
            self._held.append(request)
            return
        sent = _Sent(next(self._numbers), request, ticket)
        self._sent[sent.key] = self._by_id[request.request_id] = sent
        self._engines.send(ticket.engine, transport.pack_request(sent.key, request, request.trace_headers))

    def abort(self, request_id: str) -> None:
        self._held = deque(request for request in self._held if request.request_id != request_id)
        if (sent := self._by_id.get(request_id)) is not None:
            self._engines.send(sent.ticket.engine, transport.Abort(sent.key))
            self._drop(sent)

    def fail_request(self, request_id: str, reason: str) -> None:
        self.abort(request_id)

    def finish_sequence(self, sequence_id: SequenceId, stop: str) -> bool:
        if (found := self._by_sequence.get(sequence_id)) is None:
            return False
        sent, index = found
        self._engines.send(sent.ticket.engine, transport.FinishSequence(sent.key, index, stop))
        self._ended(sent, index)
        return True

    @property
    def has_unfinished(self) -> bool:
        return bool(self._sent or self._held)

    def step(self) -> list[SequenceUpdate]:
        """The next step of each engine; waits for one, but not long. Raises EngineDeadError if no engine stays up.

        No more than a step: how a sequence ended is written on it, so an update must be read before the next is made.
        """
        self._poll(0.0 if any(self._queues) else STEP_S)
        for engine, queue in enumerate(self._queues):
            while queue:
                message = queue.popleft()
                self._take(engine, message)
                if isinstance(message, transport.StepNews):
                    break
        updates, self._updates = self._updates, []
        return updates

    def stats(self) -> EngineStats:
        return total_stats([msgspec.msgpack.decode(one, type=EngineStats) for one in self.answers("stats").values()])

    def exposition(self) -> bytes:
        """The metrics of all engines that serve, as Prometheus reads them; each has its own label."""
        return joined([*self.answers("metrics").values()])

    def values(self) -> list[Metric]:
        """The same as Python values."""
        return [metric for one in self.answers("metric values").values() for metric in pickle.loads(one)]

    def measure(self) -> dict[str, int]:
        """The bytes of each part of the memory, of all engines together."""
        total: Counter[str] = Counter()
        for one in self.answers("memory").values():
            total.update(msgspec.msgpack.decode(one, type=dict[str, int]))
        return dict(total)

    def reset_prefix_cache(self) -> bool:
        for engine in self._engines.up:
            self._router.forget(engine)
        self.answers("reset_prefix_cache")
        return True

    def change_adapters(self, load: LoRARequest | None = None, unload: int | None = None) -> list[LoRARequest]:
        found: dict[str, LoRARequest] = {}
        for answer in self._answers_to(lambda number: transport.Adapters(number, load, unload)).values():
            known = msgspec.msgpack.decode(answer, type=transport.AdaptersAre)
            if known.refusal:
                raise InvalidRequestError(known.refusal)
            found |= {one.lora_name: one for one in known.loaded}
        return [*found.values()]

    def close(self) -> None:
        self._engines.close()

    def answers(self, about: str) -> dict[int, bytes]:
        """The answer of each engine that serves, by its number. Raises EngineDeadError if none does."""
        return self._answers_to(lambda number: transport.Question(number, about))

    def _answers_to(self, question: Callable[[int], transport.Up]) -> dict[int, bytes]:
        asked = {engine: next(self._numbers) for engine in sorted(self._engines.up)}
        for engine, number in asked.items():
            self._engines.send(engine, question(number))
        while any(one in self._engines.up and number not in self._answers for one, number in asked.items()):
            self._poll(STEP_S)
        found = {one: self._answers.pop(number) for one, number in asked.items() if number in self._answers}
        if not found:
            raise EngineDeadError("all engines are down; they are being started again, try later")
        return found

    # What comes from the engines

    def _poll(self, seconds: float) -> None:
        """Queue what has come, or comes within so many seconds. What concerns a whole engine is done at once, so that
        no request is sent to one that is gone."""
        for engine, message in self._engines.poll(seconds):
            match message:
                case transport.Reply(number, answer):
                    self._answers[number] = answer
                case Note():
                    self._queues[engine].append(_Loss(self._cut_off(engine), message))
                case transport.Welcome():
                    self._router.goes_up(engine, message.num_cache_tokens)
                    held, self._held = self._held, deque()
                    for request in held:
                        self.add_request(request)
                case _:
                    self._queues[engine].append(message)

    def _cut_off(self, engine: int) -> list[_Sent]:
        """An engine is gone -> its unfinished requests."""
        lost = [sent for sent in self._sent.values() if sent.ticket.engine == engine]
        for sent in lost:
            self._router.ended(sent.ticket)
        self._router.goes_down(engine)
        return lost

    def _take(self, engine: int, message: transport.Down | _Loss) -> None:
        match message:
            case transport.StepNews():
                self._take_news(message)
            case transport.Refusal(key, _, text):
                if (sent := self._sent.get(key)) is not None:
                    self._fail(sent, text)
            case _Loss():
                self._take_loss(engine, message)

    def _take_news(self, news: transport.StepNews) -> None:
        for one in news.others:  # first: they announce sequences that the columns name
            if (sent := self._sent.get(one.key)) is not None:
                self._updates.append(self._mirror(sent, one))
        indices = news.indices or itertools.repeat(0, len(news.keys))
        for key, index, token_id in zip(news.keys, indices, news.token_ids, strict=True):
            if (sent := self._sent.get(key)) is not None:
                self._updates.append(SequenceUpdate(sent.request.sequences[index], [token_id]))

    def _mirror(self, sent: _Sent, news: transport.SequenceNews) -> SequenceUpdate:
        sequences = sent.request.sequences
        num_known = len(sequences)
        update = mirrored(sent.request, news, self._ids)
        for sequence in sequences[num_known:]:
            self._by_sequence[sequence.sequence_id] = sent, sequence.index
        if not sent.has_news:
            sent.has_news = True
            self._router.started(sent.ticket)
        if update.sequence.finish_reason is not None:
            self._ended(sent, news.index)
        return msgspec.structs.replace(update, prompt_logprobs=unpack_rows(news.prompt_logprobs))

    def _take_loss(self, engine: int, loss: _Loss) -> None:
        guilty = set(loss.note.fingerprints)
        for sent in loss.requests:
            if sent.key not in self._sent:
                continue  # its end had been reported
            is_guilty = bool(guilty) and transport.fingerprint_of(sent.request) in guilty
            if sent.has_news or is_guilty:
                self._fail(sent, str(refusal()) if is_guilty else f"engine {engine} went down: {loss.note.text}")
            else:
                self._drop(sent)
                self.add_request(sent.request)

    def _fail(self, sent: _Sent, why: str) -> None:
        """End what is left of a request with an error."""
        sequences = sent.request.sequences
        if not sequences:
            sequences.append(Sequence(next(self._ids), sent.request, 0, []))
        for sequence in sequences:
            if sequence.index not in sent.ended:
                sequence.finish_reason, sequence.stop_reason = "error", why
                self._updates.append(SequenceUpdate(sequence, []))
        self._drop(sent)

    def _ended(self, sent: _Sent, index: int) -> None:
        sent.ended.add(index)
        if len(sent.ended) == len(sent.request.sequences):
            self._drop(sent)

    def _drop(self, sent: _Sent) -> None:
        del self._sent[sent.key]
        del self._by_id[sent.request.request_id]
        for sequence in sent.request.sequences:
            self._by_sequence.pop(sequence.sequence_id, None)
        self._router.ended(sent.ticket)
