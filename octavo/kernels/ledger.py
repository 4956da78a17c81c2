"""The memory ledger: which part of an engine takes how many bytes.

    planned     from a recorded model and the sizes of a step: needs no weights and no device
    measured    from the owners of the memory, once it is allocated

Devices fill a ledger (`Device.ledger`) by the functions with which they also allocate. `octavo plan`, the number of KV
blocks and the messages of an out-of-memory read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from octavo.distributed.expert_moves import moving_bytes
from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import ExpertStack, Mixture
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import Recording, share_buffers

#: weights       parameters and rotary angles
#: activations   the values that a step's ops pass on, up to its logits
#: workspace     partial results, plans and drafts between the kernels of an op
#: rows          what a worker keeps of each running sequence: tokens, block tables
#: graphs        captured steps, and kernels that they load
#: system        what the driver and its libraries take
Component = Literal["weights", "activations", "workspace", "rows", "graphs", "system"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
Measured = Mapping[Component, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """what: its parts, for people. is_late: allocated after the KV blocks."""

    component: Component
    num_bytes: int
    what: str
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything but the KV blocks."""

    entries: tuple[Entry, ...]

    def of(self, component: Component) -> int:
        return sum(entry.num_bytes for entry in self.entries if entry.component == component)

    def beside(self, entry: Entry) -> Ledger:
        """With one more, if it takes any bytes."""
        return Ledger((*self.entries, entry)) if entry.num_bytes else self

    @property
    def total(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def early(self) -> int:
        """Bytes that are allocated before the KV blocks."""
        return sum(entry.num_bytes for entry in self.entries if not entry.is_late)

    @property
    def late(self) -> int:
        return self.total - self.early


@dataclass(frozen=True, slots=True)
class Contents:
    """The parameters that recordings read, each once, by the way that a device holds them."""

    tables: dict[str, Parameter] = field(default_factory=dict)  # embeddings
    linears: dict[str, Linear] = field(default_factory=dict)
    products: dict[str, Linear] = field(default_factory=dict)  # the linears that are not inside a mixture
    vectors: dict[str, Parameter] = field(default_factory=dict)  # norms
    mixtures: dict[str, Mixture] = field(default_factory=dict)
    latents: dict[str, Latent] = field(default_factory=dict)  # by the name of their matrix
    rotary: dict[int, RotaryTable] = field(default_factory=dict)  # by identity
    adapted: dict[str, AdaptedModule] = field(default_factory=dict)

    @classmethod
    def of(cls, recordings: Iterable[Recording]) -> Contents:
        found = cls()
        for recording in recordings:
            for instruction in recording.instructions:
                for argument in instruction.arguments.values():
                    found._add(argument)
                    if isinstance(argument, Linear):
                        found.products[argument.name] = argument
        return found

    @property
    def stacks(self) -> list[ExpertStack]:
        """The experts' matrices."""
        return [stack for layer in self.mixtures.values() for stack in (layer.gate_up, layer.down)]

    def rotary_bytes(self, max_model_len: int) -> int:
        """Cosines and sines in float32."""
        return sum(4 * table.rotary_dim * max_model_len for table in self.rotary.values())

    def adapter_entries(self, element_bytes: int) -> list[Entry]:
        """The slots of adapters, if there are any."""
        modules = list(self.adapted.values())
        total = sum(module.num_bytes(element_bytes) for module in modules)
        return [Entry("weights", total, f"slots of {module.sizes.num_slots} adapters") for module in modules[:1]]

    def moving_entries(self, expert_bytes: Callable[[Mixture], int]) -> list[Entry]:
        """What experts need to change places, if they do: counts, tables, and room for those on their way."""
        layers = [layer for layer in self.mixtures.values() if layer.slots is not None]
        if not layers:
            return []
        one = layers[0]
        assert one.slots is not None, "it has been asked"
        tables = len(layers) * one.routing.num_experts * (8 + 4 * (1 + one.slots.most_copies))
        total = tables + moving_bytes(max(map(expert_bytes, layers)), one.num_own)
        return [Entry("workspace", total, "experts that change places")]

    def _add(self, argument: object) -> None:
        if isinstance(argument, AdaptedModule):
            self.adapted[argument.name] = argument
        elif isinstance(argument, Linear):
            self.linears[argument.name] = argument
        elif isinstance(argument, Mixture):
            self.mixtures[argument.name] = argument
            for part in (*argument.linears, argument.bias):
                self._add(part)
        elif isinstance(argument, AttentionLayer):
            for parameter in argument.parameters:
                self._add(parameter)
            if argument.latent is not None:
                self.latents[argument.latent.up.name] = argument.latent
            if argument.rotary is not None:
                self.rotary[id(argument.rotary)] = argument.rotary
        elif isinstance(argument, Parameter):
            (self.tables if len(argument.shape) > 1 else self.vectors)[argument.name] = argument


def row_bytes(recording: Recording) -> int:
    """Bytes of activations for each row of a step."""
    return 4 * sum(share_buffers(recording.instructions, recording.given, recording.kept).widths)


def device_budget(total: int, used: int, late: int, utilization: float) -> int:
    """Bytes for KV blocks on a device with `total` bytes, of which `used` are taken: what that share of the device
    leaves, and no more than there is beside what is allocated after the blocks."""
    return max(0, min(total - used - late, int(total * utilization) - used))


def size(num_bytes: int) -> str:
    """For people: 1.2 GiB."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes} bytes"
