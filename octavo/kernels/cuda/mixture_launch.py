"""How a program launches a layer of experts: in CUDA C++ for few rows, or many of each expert; else in Triton."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from octavo.kernels.cuda.shared import Shared
from octavo.kernels.cuda_cpp.expert_format import least_pairs
from octavo.kernels.cuda_cpp.grouped_linear import WideProducts
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Parameter
from octavo.kernels.triton.elementwise.norm import rms_norm
from octavo.kernels.triton.experts.combine import NextNorm
from octavo.kernels.triton.experts.mixture import Experts, mixture

if TYPE_CHECKING:
    from octavo.kernels.cuda.step import DeviceStep


class MixtureLaunch:
    """norm_weight: of the RMSNorm of x, or, for `and_norm`, of the sum."""

    def __init__(self, layer: Mixture, norm_weight: Parameter | None, eps: float, shared: Shared) -> None:
        weights, self._gpu, self._is_fixed = shared.weights, shared.gpu, shared.is_fixed
        self._name, self._placings = layer.name, shared.placings
        self._experts, self._few_rows = Experts.of(layer, weights), range(0)
        self._norm, self._eps = None if norm_weight is None else weights.vector(norm_weight), eps
        assert shared.room is not None, "a model with experts has room for them"
        self._room = shared.room
        if shared.placings is not None and shared.placings.placed.lacks(layer.name):
            shared.placings.placed.hold(layer.name, self._experts.slots)
        if shared.why_not_few(layer) is None:
            from octavo.kernels.cuda_cpp.experts import FewRowExperts

            self._few = FewRowExperts(self._experts, self._room, shared.gpu, weights.dtype)
            self._few_rows = shared.few_rows(layer)

        self._wide: WideProducts | None = None
        if shared.why_not_wide(layer) is None:
            self._wide = WideProducts(shared.gpu, weights.dtype)
            own = self._experts
            self._wide.prepare((own.gate_up, own.gate_up_bias), (own.down, own.down_bias), layer.gate)

    def __call__(self, step: DeviceStep, x: torch.Tensor, *rest: torch.Tensor) -> None:
        *residuals, out = rest
        residual = residuals[0] if residuals else None
        if len(x) in self._few_rows:
            self._few.run(x, residual, out, norm=self._norm, eps=self._eps)
            return
        assert self._norm is None, "a norm is fused only where the kernels for few rows take it"
        self._run(step, x, residual, out)

    def and_norm(
        self, step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
    ) -> None:
        """total = residual + mixture(x), in the residual's memory; out = rms_norm(total). The norm is not of x."""
        assert self._norm is not None, "what norms has a weight"
        norm = NextNorm(self._norm, self._eps, out)
        if len(x) in self._few_rows:
            self._few.run(x, residual, total, norm=None, eps=self._eps)
            rms_norm(total, *norm, chained=self._gpu.chains)
        else:
            self._run(step, x, residual, total, norm)

    def _run(
        self, step: DeviceStep, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor,
        norm: NextNorm | None = None,
    ) -> None:  # fmt: skip
        placing = None if self._placings is None else self._placings.of(self._name, step)
        given = self._experts, self._room
        mixture(
            x, residual, out, *given, is_fixed=self._is_fixed, chained=self._gpu.chains, placing=placing,
            wide=self._wide, norm=norm,
        )  # fmt: skip


def kernels_of(layers: Iterable[Mixture], shared: Shared) -> str | None:
    """For people: what multiplies experts. None: there are none."""
    found = list(layers)
    reasons = dict.fromkeys(why for layer in found if (why := shared.why_not_few(layer)) is not None)
    ranges = dict.fromkeys(rows for layer in found if not reasons and (rows := shared.few_rows(layer)))
    cuda = [f"cuda for {rows.start} to {rows.stop - 1} rows" for rows in ranges]
    if found and all(shared.why_not_wide(layer) is None for layer in found):
        cuda += [f"cuda for {pairs} rows an expert" for pairs in dict.fromkeys(map(least_pairs, found))]
    triton = f"triton ({'; '.join(reasons)})" if reasons else "triton"
    return ", ".join([*cuda, triton]) if found else None
