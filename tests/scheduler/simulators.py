"""The scheduler's tests share these: simulators that check invariants, prompts, and filters of events."""

from octavo.config import SchedulerConfig
from tests.simulate import Simulator


def simulator_of(**options):
    """Options of the scheduler and of the simulator alike."""
    config = {key: options.pop(key) for key in list(options) if key in SchedulerConfig.__dataclass_fields__}
    return Simulator(config=SchedulerConfig(**config), checks=True, **options)


def prompt_of(length, start=0):
    return [(start + i) % 1000 for i in range(length)]


def seen(simulator, kind):
    return [event for event in simulator.events if isinstance(event, kind)]
