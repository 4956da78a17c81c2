"""Room: the memory between the launches of a mixture. All layers and passes of a model share it, one after another.

A pair is a row and one of its chosen experts; pair row * K + place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import few_mixture_rows, mixture_codes, mixture_lists, mixture_pairs
from octavo.kernels.cuda_cpp.expert_format import padded
from octavo.kernels.mixture import Mixture
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.linear.quantized import quantise_rows


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """ids, weights: by pair. counts: pairs of each expert; zero between mixtures. order [experts, max_rows]: each
    expert's pairs. gated: the activations of each pair, results: the pair's result, in the model's type, flat. codes,
    row_scales: of rows that become fp8. few_x, few_gated: rows as the kernels in CUDA C++ read them, flat. posted: what
    blocks of one of them tell each other; it counts their launches."""

    max_rows: int
    logits: torch.Tensor
    arrived: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    order: torch.Tensor
    posted: torch.Tensor
    gated: torch.Tensor
    results: torch.Tensor
    codes: torch.Tensor
    row_scales: torch.Tensor
    few_x: torch.Tensor
    few_gated: torch.Tensor

    @classmethod
    def of(
        cls, mixtures: Iterable[Mixture], max_rows: int, dtype: torch.dtype, device: torch.device, gpu: GPU
    ) -> Room | None:
        """Room for the largest of the mixtures; None if there are none."""
        layers = list(mixtures)
        if not layers:
            return None
        lists = {
            name: torch.zeros(shape, dtype=torch.int32, device=device)
            for name, shape in mixture_lists(layers, max_rows).items()
        }
        pairs = {
            name: torch.empty(count, dtype=dtype, device=device)
            for name, count in (mixture_pairs(layers, max_rows) | few_mixture_rows(layers)).items()
        }
        floats = {name: lists.pop(name).view(torch.float32) for name in ("logits", "weights")}
        codes, row_scales = mixture_codes(layers, max_rows, str(dtype).removeprefix("torch."), gpu).values()
        small = torch.empty(codes, dtype=torch.uint8, device=device)
        return cls(max_rows, **floats, **lists, **pairs, codes=small, row_scales=torch.empty(row_scales, device=device))

    def as_codes(
        self, x: torch.Tensor, weight: WeightStack, *, chained: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows in fp8, and their scales, if the weight is multiplied by such; else the rows. Valid until the next."""
        if weight.code != "F8_E4M3" or not weight.scales_outputs or not len(self.codes):
            return x, None
        codes = self.codes[: x.numel()].view(torch.float8_e4m3fn).view(x.shape)
        scales = self.row_scales[: len(x)]
        quantise_rows(x, codes, scales, chained=chained)
        return codes, scales

    def few_rows(self, hidden: int, inner: int, num_rows: int, num_chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows, and pairs between the products, with room for what ends them."""
        x = self.few_x[: num_rows * padded(hidden)].view(num_rows, -1)
        return x, self.few_gated[: num_rows * num_chosen * padded(inner)].view(num_rows * num_chosen, -1)

    def posted_words(self, num_experts: int) -> tuple[int, int, int]:
        """Addresses: words of logits, each in a sector of its own; of pairs of gated outputs; counts of blocks, one of
        each kernel that tells others of its launches by them."""
        count = self.posted.data_ptr()
        return count + 32, count + 32 + 32 * num_experts, count

    @property
    def num_bytes(self) -> int:
        lists = (self.logits, self.arrived, self.ids, self.weights, self.counts, self.order, self.posted)
        pairs = (self.gated, self.results, self.few_x, self.few_gated)
        return sum(each.nbytes for each in (*lists, *pairs, self.codes, self.row_scales))
