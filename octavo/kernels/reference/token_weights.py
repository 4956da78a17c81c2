"""How much each token matters to a product: the squared gradient of the model's loss by the product's outputs.

An error e in a product's outputs for one token changes the loss by about (g . e)^2 / 2, where g is the gradient of
-log p(t) for a token t that is drawn from the model's own probabilities p (Fisher's information). With |g|^2 as the
token's weight, errors are small where they matter. The first token of a text is an example: all later ones attend to
it, so its key and value matter a thousand times as much as others, and its query not at all.

    for some texts at a time:
        forward, the hidden states before each layer kept
        backward, each layer computed again with its gradients

In memory are hidden states of some texts before every layer, and one layer's weights and activations in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from octavo.kernels.arrays import IntArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.latent import Latent
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.attention import StepIndex
from octavo.kernels.reference.product_ops import ProductOps, RunLayer, steps_of
from octavo.kernels.reference.weights import ReferenceWeights

_LOGITS_AT_ONCE = 256  # rows: each has a number for every token of the vocabulary
_SEED = 0
#: of all tokens of all texts, by the place of a matrix
TokenWeights = Mapping[str, torch.Tensor]


def place_of(part: Parameter) -> str:
    """Experts share the weights of their place: which of them a token reaches may change with quantised layers."""
    return re.sub(r"\.experts\.\d+\.", ".experts.", part.name)


class Backward:
    """A model as functions: tokens to hidden states, through each layer, and to logits."""

    def __init__(self, embedding: Callable[[Ops], Tensor], layers: Sequence[RunLayer], logits: RunLayer) -> None:
        self._embedding = embedding
        self._layers = layers
        self._logits = logits
        self._head = ProductOps()
        self._found: dict[str, torch.Tensor] = {}

    def token_weights(self, texts: IntArray, advance: Callable[[int], None]) -> TokenWeights:
        """texts: token ids [texts, length]. advance: told how many tokens are done."""
        draws = torch.Generator().manual_seed(_SEED)
        for first, step in steps_of(texts).items():
            *streams, last = self._forward(step, first)
            gradient = self._of_drawn_tokens(last, draws)
            for layer, stream in zip(reversed(self._layers), reversed(streams), strict=True):
                ops = _GradientOps(self._found, texts.size)
                ops.begin(step, first)
                after = layer(ops, stream.requires_grad_())
                (gradient,) = torch.autograd.grad(after, stream, gradient)
            advance(len(step.positions))
        return self._found

    @torch.no_grad()
    def _forward(self, step: StepIndex, first: int) -> list[torch.Tensor]:
        """The hidden states before each layer, and those after the last one."""
        streams: list[torch.Tensor] = []
        for layer in (None, *self._layers):
            ops = ProductOps()
            ops.begin(step, first)
            streams.append(self._embedding(ops) if layer is None else layer(ops, streams[-1]))
        return streams

    def _of_drawn_tokens(self, stream: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        """The gradient of the loss [T, H]."""
        found = torch.empty_like(stream)
        for begin in range(0, len(stream), _LOGITS_AT_ONCE):
            rows = slice(begin, begin + _LOGITS_AT_ONCE)
            part = stream[rows].detach().requires_grad_()
            logits = self._logits(self._head, part)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draws)[:, 0]
            (found[rows],) = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), part)
        return found


class _GradientOps(ProductOps):
    """found: the weights so far."""

    def __init__(self, found: dict[str, torch.Tensor], num_tokens: int) -> None:
        super().__init__(ReferenceWeights())
        self._found = found
        self._num_tokens = num_tokens

    def _linear(self, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        y = super()._linear(x, weight)
        self._see_gradient(y, *weight.parts)
        return y

    def _normed_latent(self, kv: torch.Tensor, layer: AttentionLayer, latent: Latent) -> torch.Tensor:
        c_TR = super()._normed_latent(kv, layer, latent)
        self._see_gradient(c_TR, latent.up)  # its own outputs are never computed: they are part of other products
        return c_TR

    def _see_gradient(self, y: torch.Tensor, *parts: Parameter) -> None:
        sizes = [part.shape[0] for part in parts] if len(parts) > 1 else [y.shape[1]]
        # What autograd calls must not hold these ops: they hold its tensors, and Python finds no such circle.
        found, tokens, num_tokens = self._found, self.tokens, self._num_tokens

        def see(gradient: torch.Tensor) -> None:
            for part, piece in zip(parts, torch.split(gradient, sizes, dim=1), strict=True):
                sums = found.setdefault(place_of(part), torch.zeros(num_tokens))
                sums.index_add_(0, tokens, piece.square().sum(1))

        y.register_hook(see)  # type: ignore[no-untyped-call]
