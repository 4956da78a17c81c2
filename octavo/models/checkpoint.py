"""Checkpoint: an opened model. Its configuration is read; its tensors are found but not loaded.

Tensors have canonical names and layouts, whatever file they come from: those of Hugging Face's
causal-language-model classes, with every linear weight as [out, in]. (Hugging Face's own GPT-2 files store
[in, out]; they are transposed when read.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Shape
from octavo.kernels.tensor import PART_DTYPES, UNNAMED, DType, StoredTensor
from octavo.models.architecture import Architecture
from octavo.models.located import TokenizerSource
from octavo.shown import shown

#: buffers that some exporters save and no model needs: as leftovers they are harmless
IRRELEVANT_ENDINGS = (
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attn.bias",  # GPT-2's causal mask
    ".attn.masked_bias",
    "position_ids",
    ".input_zero_point",  # of static activations, which are not rounded
    ".activation_scale",
)
#: heads that a model which embeds does not use
_UNUSED_HEADS = (
    "bert.pooler.",
    "roberta.pooler.",
    "mpnet.pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "score.",
    "head.",
    "decoder.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """label: its path or name, for messages. sampling_defaults: the model makers' recommendations, under
    SamplingParams' names. taken: tensors that `take` has returned. unreadable: tensors of unsupported types, with
    the error to raise if one is needed."""

    label: str
    architecture: Architecture
    stored: Mapping[str, StoredTensor]
    tokenizer_source: TokenizerSource | None = None
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.stored.values())

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The tensors' types, the one with most bytes first."""
        sizes: dict[DType, int] = {}
        for tensor in self.stored.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))

    @property
    def number_dtype(self) -> DType:
        """The first of these that holds numbers: what a quantised model's other tensors are in."""
        return next((dtype for dtype in self.dtypes if dtype not in PART_DTYPES), "BF16")

    @property
    def dtype_label(self) -> str:
        """For the start-up card: "Q4_1, Q8_0, F32"."""
        return ", ".join(self.dtypes)

    def with_tensors(self, stored: Mapping[str, StoredTensor]) -> Checkpoint:
        return replace(self, stored=stored, taken=set())

    def take(self, name: str, shape: Shape) -> StoredTensor:
        """The tensor of that name and shape, not read yet. Raises ModelLoadError if there is none."""
        self._expect(name, shape)
        self.taken.add(name)
        found = self.stored[name]
        return found if found.label != UNNAMED else replace(found, label=f"{self.label}: tensor {name!r}")

    def check(self, required: Mapping[str, Shape]) -> None:
        """Raise ModelLoadError unless every tensor of the table exists in its shape; reads no data."""
        missing = [name for name in required if name not in self.stored and name not in self.unreadable]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            a = self.architecture
            kind = f" for {a.family} in {a.quantization.method}" if a.quantization is not None else ""
            raise ModelLoadError(
                f"{self.label}: tensor {missing[0]!r}{more} of {len(required)} needed{kind} are missing; "
                f"{self._cure(missing[0])}"
            )
        for name, shape in required.items():
            self._expect(name, shape)

    def _cure(self, missing: str) -> str:
        """What to do about a missing tensor: its codes may be there, under a name that nothing explains."""
        stem, a = missing.removesuffix("weight"), self.architecture
        near = (name for name, tensor in self.stored.items() if name.startswith(stem) and tensor.dtype in PART_DTYPES)
        if a.quantization is not None or (codes := next(near, None)) is None:
            return "download or convert the model again"
        return f"{codes!r} is there, but config.json has no quantization_config that says how it is stored"

    def leftovers(self) -> list[str]:
        """Tensors that were never taken: a sign that the configuration does not match the model."""
        known = self.taken | ({"lm_head.weight"} if self.architecture.tie_word_embeddings else set())
        names: Iterable[str] = (*self.stored, *self.unreadable)
        if self.architecture.pooling is not None:
            names = [name for name in names if not name.startswith(_UNUSED_HEADS)]
        return [name for name in names if name not in known and not name.endswith(IRRELEVANT_ENDINGS)]

    def _expect(self, name: str, shape: Shape) -> None:
        found = self.stored.get(name)
        if found is None and name in self.unreadable:
            raise UnsupportedModelError(self.unreadable[name])
        if found is None:
            raise ModelLoadError(f"{self.label}: tensor {name!r} is missing; download or convert the model again")
        if not _agree(found.shape, shape):
            raise ModelLoadError(
                f"{self.label}: tensor {name!r} has shape {shown(list(found.shape))}, "
                f"but the model's configuration asks for {list(shape)}; take both from the same download"
            )


def _agree(found: Shape, wanted: Shape) -> bool:
    """Of a size -1 any will do; a single number may have a dimension or none, and a column one or two."""
    if (found == () and wanted == (1,)) or (wanted[1:] == (1,) and found == wanted[:1]):
        return True
    return len(found) == len(wanted) and all(one == size or size == -1 for one, size in zip(found, wanted, strict=True))
