"""ModelRecording: a model's recordings in the parts that devices bind. Plans read its shapes and types, no numbers."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.model import Model
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.program.fuse import without_adapters
from octavo.kernels.program.recorder import Recording, record, record_model


@dataclass(frozen=True, slots=True, eq=False)
class ModelRecording:
    """The pass to the hidden states, the rest of it, and both in one. gives_logits: otherwise the head gives hidden
    states, of all tokens, to the next stage."""

    body: Recording
    head: Recording
    whole: Recording
    gives_logits: bool = True

    def without_adapters(self) -> ModelRecording:
        """For steps in which no token has one."""
        body, head, whole = (without_adapters(each) for each in (self.body, self.head, self.whole))
        return ModelRecording(body, head, whole, self.gives_logits)

    @classmethod
    def of(cls, model: Model) -> ModelRecording:
        body, heads = record_model(model)
        ((name, head),) = heads.items()

        def whole(ops: Ops, *given: Tensor) -> Tensor:
            return model.heads[name](ops, *model.body(ops, *given))

        return cls(body, head, record(whole, *(value.width for value in body.given)), name == "logits")
