"""EngineFleet: the engines of a server, or of an LLM with several: their keepers, and what one's death means to others.

all have served once     then, and not before, are front ends told of any of them: a start fails as a whole
one dies or hangs        it is restarted while the others serve; those are told which requests may be the cause
one does not stay up     the others serve on; when none is left, the server ends
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from octavo.channel import Note
from octavo.config import EngineConfig
from octavo.observe.logging import LOGGER
from octavo.processes.engine_keeper import EngineKeeper
from octavo.processes.household import EngineTask, Household
from octavo.processes.placement import engine_places
from octavo.processes.probation import Suspects
from octavo.processes.traffic_tasks import traffic_tasks
from octavo.server_config import AdmissionConfig, TransferConfig


class EngineFleet:
    """Owner of the keepers. tell: sends a note to all front ends. give_up: called when no engine stays up.
    was_told_to_end: called whenever one has exited as it was told. first_ready: called with the start-up card when all
    serve for the first time."""

    def __init__(
        self,
        house: Household,
        config: EngineConfig,
        *,
        admission: AdmissionConfig,
        model_name: str,
        logs_stats: bool,
        hang_timeout_s: float,
        tell: Callable[[Note], None],
        give_up: Callable[[], None],
        was_told_to_end: Callable[[], None],
        first_ready: Callable[[Sequence[tuple[str, str]]], None],
        serves: bool = True,
        transfer: TransferConfig | None = None,
    ) -> None:
        """serves: as in a WorkerTask. transfer: whether some engines compute prompts for others."""
        self._tell, self._give_up, self._first_ready = tell, give_up, first_ready
        self._suspects = Suspects()
        traffic = traffic_tasks(transfer or TransferConfig(), config, house.run_directory)
        self.num_answering = config.backend.data_parallel_size
        places = engine_places(config, len(traffic) - self.num_answering)
        task = partial(
            EngineTask,
            admission=admission,
            model_name=model_name,
            logs_stats=logs_stats,
            hang_timeout_s=hang_timeout_s,
            run_directory=house.run_directory,
            num_engines=len(places),
            serves=serves,
        )
        self.keepers = [
            EngineKeeper(
                house,
                partial(task, index=index, config=_with_own_log(place.config, index), traffic=own),
                place.environment,
                self,
                was_told_to_end,
            )
            for index, (place, own) in enumerate(zip(places, traffic, strict=True))
        ]

    @property
    def up_notes(self) -> list[Note]:
        """The notes that tell a front end of every engine that serves; none before all have served."""
        if not all(one.has_served for one in self.keepers):
            return []
        return [
            Note("engine_up", engine=index, text=one.address)
            for index, one in enumerate(self.keepers)
            if one.address is not None
        ]

    @property
    def are_gone(self) -> bool:
        return all(one.child is None for one in self.keepers)

    def front_end_gone(self, index: int, process_id: int) -> None:
        """Have the engines abort the requests of a front end that ended."""
        for keeper in self.keepers:
            keeper.front_end_gone(index, process_id)

    def stop(self) -> None:
        for keeper in self.keepers:
            keeper.stop()

    # For the keepers

    def goes_up(self, keeper: EngineKeeper, card: Sequence[tuple[str, str]], is_first: bool) -> None:
        """An engine serves. is_first: for the first time."""
        if not is_first:
            LOGGER.info("%s is up again", keeper.name)
        notes = self.up_notes
        if is_first and notes:
            self._first_ready(card)
        for note in notes:
            if is_first or note.text == keeper.address:
                self._tell(note)

    def goes_down(self, keeper: EngineKeeper, why: str, guilty: Sequence[str]) -> None:
        self._tell(Note("engine_down", engine=self.keepers.index(keeper), text=why, fingerprints=list(guilty)))

    def accuse(self, keeper: EngineKeeper, fingerprints: Sequence[str]) -> list[str]:
        """An engine died while it computed these requests -> those that too many engines have died at."""
        now = time.monotonic()
        guilty = self._suspects.accuse(fingerprints, now)
        counts = self._suspects.num_deaths(now)
        note = Note("suspects", num_deaths={one: counts[one] for one in fingerprints if one in counts})
        for other in self.keepers:
            if other is not keeper and fingerprints:
                other.send(note)
        return guilty

    def clear(self, fingerprint: str) -> None:
        """A suspect has been computed."""
        self._suspects.clear(fingerprint)

    @property
    def num_deaths(self) -> dict[str, int]:
        """What a new engine is told of suspects."""
        return self._suspects.num_deaths(time.monotonic())

    def does_not_stay_up(self, keeper: EngineKeeper) -> None:
        """A keeper has given up."""
        if all(one.has_given_up for one in self.keepers[: self.num_answering]):
            self._give_up()
        else:
            LOGGER.error("%s is not started again: it does not stay up. The others go on", keeper.name)


def with_engines(card: Sequence[tuple[str, str]], num_engines: int, num_prefill: int = 0) -> list[tuple[str, str]]:
    """One engine's start-up card for all of them."""
    lines = [*card]
    if num_prefill:
        lines.insert(-1, ("engines", f"{num_engines} of these, and {num_prefill} that compute prompts for them"))
    elif num_engines > 1:
        lines.insert(-1, ("engines", f"{num_engines} of these, which share the requests"))
    return lines


def print_card(card: Sequence[tuple[str, str]], num_engines: int, num_prefill: int = 0) -> None:
    """Print a server's start-up card on standard error."""
    lines = with_engines(card, num_engines, num_prefill)
    width = max(len(label) for label, _ in lines)
    print(*(f"  {label:<{width}}  {text}" for label, text in lines), sep="\n", file=sys.stderr, flush=True)


def _with_own_log(config: EngineConfig, index: int) -> EngineConfig:
    """Several engines record into FILE, FILE.1, FILE.2, ..."""
    if index == 0 or config.observe.record is None:
        return config
    return replace(config, observe=replace(config.observe, record=f"{config.observe.record}.{index}"))
