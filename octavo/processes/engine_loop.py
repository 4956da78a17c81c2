"""The loop of an engine's process: it runs steps, and after each sends one message to every front end concerned.

Prompts and outputs are tokens here, never text. The process reads its sockets between steps, and sleeps on them while
no request runs. engine_process.py starts it.
"""

from __future__ import annotations

import pickle
import time

import msgspec
import zmq

from octavo.channel import Channel, Note
from octavo.engine.core import EngineCore
from octavo.engine.input import check_unused
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.watched_memory import WatchedMemory
from octavo.errors import EngineBusyError, OctavoError
from octavo.observe.events import Refused
from octavo.observe.logging import LOGGER
from octavo.observe.metrics import EngineMetrics
from octavo.observe.summary import IntervalSummary
from octavo.processes import transport
from octavo.processes.block_traffic import BlockTraffic
from octavo.processes.heartbeat import Heartbeat
from octavo.processes.household import EngineTask
from octavo.processes.load_report import LoadReport
from octavo.processes.outbox import Live, Outbox, Questions, is_plain, sequence_news, welcome_of
from octavo.processes.probation import Probation
from octavo.processes.queue_bounds import AdmissionControl
from octavo.processes.step_record import StepRecord
from octavo.scheduler.step import SequenceUpdate

#: the most messages taken before the next step
_MAX_TAKEN = 1000


class EngineLoop:
    """Owner of the engine and of its end of the socket."""

    def __init__(self, task: EngineTask, engine: LLMEngine, channel: Channel) -> None:
        self._engine = engine
        assert isinstance(engine.core, EngineCore), "this process has one engine"
        self._core = engine.core
        self._channel = channel
        self.heartbeat = Heartbeat(channel, task.hang_timeout_s, time.monotonic)
        self._metrics = EngineMetrics(engine.events, model_name=task.model_name, engine=str(task.index))
        self._summary = IntervalSummary(self._metrics, time.monotonic) if task.logs_stats else None
        self._admission = AdmissionControl(task.admission, self._core, engine.limits.max_num_seqs, time.monotonic)
        self._record = StepRecord(task.step_record, engine.events)
        self._probation = Probation(task.num_deaths, time.monotonic)
        self._traffic = BlockTraffic(task.traffic, task.config, engine)
        self._live: dict[str, Live] = {}
        self._of_front_end: dict[bytes, dict[int, Live]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = transport.engine_socket(self._context, task.address, is_bounded=task.serves)
        self._outbox = Outbox(self._socket, self._forget, is_bounded=task.serves)
        self._send = self._outbox.send
        self._load = LoadReport(self._send, time.monotonic, is_needed=task.num_engines > 1)
        assert engine.recorder is not None, "one engine, in its own process, has one"
        self._questions = Questions(
            {
                "metrics": self._metrics.exposition,
                "metric values": lambda: pickle.dumps(self._metrics.values()),
                "memory": lambda: transport.encode(engine.measure()),
                "stats": lambda: transport.encode(self._core.stats()),
                "memory map": WatchedMemory(self._core).answer,
                "reset_prefix_cache": lambda: transport.encode(self._core.reset_prefix_cache()),
            },
            {"events": engine.recorder.dump},
            lambda front_end, number, answer: self._send(front_end, transport.Reply(number, answer)),
            time.monotonic,
        )
        self._adapters = None
        if self._core.adapters is not None:
            from octavo.processes.adapter_desk import AdapterDesk  # engines without adapters run without its code

            self._adapters = AdapterDesk(self._core.adapters, self._traffic.mailbox.post, self._send)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(channel.fileno(), zmq.POLLIN)
        self._poller.register(self._traffic.mailbox.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Run until the parent says stop."""
        while self._listen():
            self.heartbeat.turn()
            self._outbox.retry()
            self._questions.answer()
            self._load.send_changes()
            self._traffic.turn()
            while (held := self._probation.take_next()) is not None:
                self._add(held.front_end, held.message)
            if self._core.has_unfinished:
                self._tell(self._core.step())
                self.heartbeat.step_done()
                self._admission.step_done()
                self._turn_away_expired()
                if not self._core.has_unfinished:
                    self._record.rest()
            if self._summary is not None:
                self._summary.log()

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        if self._adapters is not None:
            self._adapters.close()
        self._traffic.close()
        self._engine.close()
        self._record.close()

    # What comes in

    def _listen(self) -> bool:
        """Take all messages that have come; wait for one if there is nothing else to do. False: stop."""
        is_busy = self._core.has_unfinished or self._probation.has_next
        ready = dict(self._poller.poll(0 if is_busy else self._patience_ms()))
        if self._channel.fileno() in ready and not self._obey_parent():
            return False
        if self._socket in ready:
            for _ in range(_MAX_TAKEN):
                try:
                    front_end, payload = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(front_end, payload)
        return True

    def _patience_ms(self) -> int | None:
        """Milliseconds until something must be sent even if nothing comes; None: no limit."""
        parts = (self.heartbeat, self._outbox, self._questions, self._summary, self._load, self._traffic)
        waits = [part.seconds_left for part in parts if part is not None and part.seconds_left is not None]
        return 1 + int(1000 * min(waits)) if waits else None

    def _obey_parent(self) -> bool:
        for note in self._channel.receive():
            if note.kind == "stop":
                return False
            if note.kind == "suspects":
                self._probation.suspect(note.num_deaths)
            if note.kind == "front_end_gone":
                front_end = note.text.encode()
                self._forget(front_end)
                for part in (self._outbox, self._questions, self._load):
                    part.front_end_gone(front_end)
        return self._channel.is_open

    def _take(self, front_end: bytes, payload: bytes) -> None:
        try:
            message = transport.decode_up(payload)
        except msgspec.DecodeError as error:
            LOGGER.error("front end %s sent a message that is none: %s", front_end.decode(), error)
            return
        self._carry_out(front_end, message)

    def _carry_out(self, front_end: bytes, message: transport.Up) -> None:
        own = self._of_front_end.setdefault(front_end, {})
        match message:
            case transport.AddRequest():
                if not self._probation.holds(front_end, message):
                    self._add(front_end, message)
            case transport.Abort(key):
                if key in own:
                    self._abort(own[key])
                else:
                    self._probation.take_held(front_end, key)
            case transport.AbortById(request_id):
                self._abort_by_id(request_id)
            case transport.FinishSequence(key, index, stop):
                if (live := own.get(key)) is not None:
                    sequence = live.request.sequences[index]
                    if self._core.finish_sequence(sequence.sequence_id, stop):
                        self._count_end(live)
            case transport.Question(number, about):
                self._questions.ask(front_end, number, about)
            case transport.Adapters(number):
                if self._adapters is not None:
                    self._adapters.take(front_end, message)
                else:
                    refused = transport.AdaptersAre([], "enable_lora is False: set it to True")
                    self._send(front_end, transport.Reply(number, transport.encode(refused)))
            case transport.HasRead(num_bytes):
                self._outbox.was_read(front_end, num_bytes)
            case transport.Hello():
                self._load.front_end_came(front_end)
                self._send(front_end, welcome_of(self._engine))

    def _add(self, front_end: bytes, message: transport.AddRequest) -> None:
        """Queue a request, or send its front end a refusal."""
        try:
            self._probation.check(message)
            request = transport.unpack_request(message)
            check_unused(message.request_id, self._live)
            self._admission.check(request)
            tracer = self._engine.tracer
            if tracer is not None and message.trace_headers is not None:
                tracer.link(message.request_id, message.trace_headers)
            self._core.add_request(request)
            self._admission.admitted(request)
        except EngineBusyError as refusal:
            self._record_refusal(message.request_id, "queue_full")
            self._send(front_end, transport.Refusal(message.key, "busy", str(refusal), refusal.retry_after_s))
        except OctavoError as refusal:
            self._send(front_end, transport.Refusal(message.key, "invalid", str(refusal)))
        else:
            live = Live(front_end, message.key, request, message.fingerprint, message.work)
            self._load.added(front_end, message)
            self._live[message.request_id] = live
            self._of_front_end.setdefault(front_end, {})[message.key] = live
            self._record.expect(message.request_id, message.fingerprint)
            if (excused := self._probation.tries(message, request)) is not None:
                self._record.drop(excused.request_id)

    def _abort_by_id(self, request_id: str) -> None:
        if (live := self._live.get(request_id)) is not None:
            self._abort(live)
            self._send(live.front_end, transport.Refusal(live.key, "aborted"))
        for held in self._probation.take_held_by_id(request_id):
            self._send(held.front_end, transport.Refusal(held.message.key, "aborted"))

    def _abort(self, live: Live) -> None:
        self._core.abort(live.request.request_id)
        self._drop(live)

    def _forget(self, front_end: bytes) -> list[int]:
        """Abort all requests of a front end that is gone, or does not read -> their keys."""
        keys = [held.message.key for held in self._probation.take_held(front_end)]
        for live in list(self._of_front_end.get(front_end, {}).values()):
            self._abort(live)
            keys.append(live.key)
        self._of_front_end.pop(front_end, None)
        return keys

    def _turn_away_expired(self) -> None:
        for request, error in self._admission.take_expired():
            if (live := self._live.get(request.request_id)) is not None and live.request is request:
                self._abort(live)
                self._record_refusal(request.request_id, "queue_timeout")
                self._send(live.front_end, transport.Refusal(live.key, "busy", str(error), error.retry_after_s))

    def _record_refusal(self, request_id: str, why: str) -> None:
        events = self._engine.events
        if events.is_on:
            events.write(Refused(time.monotonic(), request_id, why))

    # What goes out

    def _tell(self, updates: list[SequenceUpdate]) -> None:
        """Send each front end one message with a step's news of its requests."""
        now = time.monotonic()
        messages: dict[bytes, transport.StepNews] = {}
        for update in updates:
            sequence = update.sequence
            live = self._live.get(sequence.request.request_id)
            if live is None or live.request is not sequence.request:
                self._traffic.stepped(sequence)  # another engine's, or aborted while the step ran
                continue
            message = messages.get(live.front_end)
            if message is None:
                message = messages[live.front_end] = transport.StepNews(now, [], [], [], [])
            if is_plain(update, live):
                message.keys.append(live.key)
                message.indices.append(sequence.index)
                message.token_ids.append(update.token_ids[0])
            else:
                message.others.append(sequence_news(update, live))
                if sequence.finish_reason is not None:
                    self._count_end(live)
        for front_end, message in messages.items():
            if not any(message.indices):
                message.indices.clear()
            self._send(front_end, message)

    def _count_end(self, live: Live) -> None:
        """Count an ended sequence. Its request has ended with the last of its sequences."""
        live.num_finished += 1
        if live.num_finished == len(live.request.sequences):
            self._drop(live)
            self._admission.request_ended()
            if self._probation.clear(live.fingerprint):
                self._channel.offer(Note("cleared", text=live.fingerprint))

    def _drop(self, live: Live) -> None:
        del self._live[live.request.request_id]
        self._of_front_end[live.front_end].pop(live.key, None)
        self._record.drop(live.request.request_id)
        self._probation.ended(live.request)
        self._admission.left(live.request)
        self._load.ended(live.front_end, live.work)
        self._traffic.request_ended(live.request)
