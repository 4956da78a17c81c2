"""Which adapters workers keep, and the requests that wait until theirs are read."""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.lora_request import LoadedAdapter, LoRARequest
from octavo.observe.events import Waits
from octavo.scheduler.adapter_shelf import AdapterShelf
from tests.simulate import Simulator, make_request

FIRST, SECOND, THIRD = ((place,) for place in range(3))


def adapter(key: int) -> LoadedAdapter:
    return LoadedAdapter(key, f"digest {key}", LoRARequest(f"adapter {key}", key, f"/{key}"))


def begin(shelf: AdapterShelf, *wanted: int, waiting: dict[int, tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    for key in wanted:
        shelf.want(adapter(key))
    return [(read.key, read.dropped) for read in shelf.begin(waiting)]


def test_an_adapter_that_nobody_waits_for_goes_first_then_the_last_in_line() -> None:
    shelf = AdapterShelf(2)
    assert begin(shelf, 2, 1, 3, waiting={1: FIRST, 2: SECOND, 3: THIRD}) == [(1, ()), (2, ())]
    assert begin(shelf, 1, waiting={1: FIRST, 2: SECOND, 3: THIRD}) == [], "it is being read"
    for key in (1, 2):
        shelf.end(key, is_kept=True)
    assert begin(shelf, waiting={1: FIRST, 2: SECOND, 3: THIRD}) == [], "those before it need their places"
    assert shelf.is_busy
    shelf.use(1)
    assert begin(shelf, waiting={3: THIRD}) == [(3, (2,))], "2 was used longest ago"
    shelf.end(3, is_kept=True)
    assert begin(shelf, 2, waiting={1: SECOND, 2: FIRST, 3: THIRD}) == [(2, (3,))], "the first in line gets a place"


def test_what_failed_is_dropped_wherever_it_was_read_and_what_nobody_wants_is_not_read() -> None:
    shelf = AdapterShelf(1)
    assert begin(shelf, 1, 2, waiting={1: FIRST}) == [(1, ())]
    shelf.end(1, is_kept=False)
    assert not shelf.is_busy
    assert not shelf.has(1)
    assert begin(shelf, 2, waiting={2: FIRST}) == [(2, (1,))]


def simulator(**options: int) -> Simulator:
    config = SchedulerConfig(max_num_batched_tokens=64, max_num_seqs=4, max_bypasses=0)
    return Simulator(config=config, num_adapter_slots=1, num_kept_adapters=1, checks=True, **options)


def test_nobody_waits_behind_one_whose_adapter_is_read() -> None:
    """Though nobody may pass another that is in the queue."""
    one = simulator()
    late, plain = make_request("late", [1, 2, 3], max_tokens=2, adapter=7), make_request("plain", [4, 5], max_tokens=2)
    one.add(late, plain)
    assert len(one.step().rows) == 1
    assert plain.sequences[0].num_output_tokens == 1
    whys = [event.why for event in one.events if isinstance(event, Waits)]
    assert whys == ["adapters: its adapter is being read, while steps go on"]
    one.run()
    assert len(late.sequences[0].output_token_ids) == 2


def test_a_fault_ends_those_who_wait_for_that_adapter() -> None:
    one = simulator()
    bad, good = (
        make_request("bad", [1, 2], max_tokens=2, adapter=7),
        make_request("good", [1, 2], max_tokens=2, adapter=8),
    )
    one.add(bad, good)
    awaited = one.scheduler.awaited
    assert awaited is not None
    assert [read.key for read in awaited.to_read()] == [7]
    (update,) = awaited.were_read(7, "the folder is gone")
    assert (update.sequence.finish_reason, update.sequence.stop_reason) == ("error", "the folder is gone")
    assert update.sequence.request is bad
    one.run()
    assert len(good.sequences[0].output_token_ids) == 2


def test_an_abort_while_it_is_read_leaves_nothing_behind() -> None:
    one = simulator()
    one.add(make_request("gone", [1, 2], max_tokens=2, adapter=7))
    one.plan()
    assert one.scheduler.abort("gone")
    one.add(make_request("other", [1, 2], max_tokens=2, adapter=8))
    one.run()
    assert one.scheduler.num_waiting == 0
