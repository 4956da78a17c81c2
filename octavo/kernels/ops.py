"""The table of ops: `Ops` declares each once, and all backends follow from it.

A model's forward pass is written once, against `Ops`. Each backend decides what a call does, and the values passed
between calls are opaque to the model:

    reference   runs the call at once in torch: the executable specification
    cpu         records it; the recorded program then runs every step as one call into C++
    triton      records it too; a CUDA graph replays the recorded launches

An op's signature lists its tensors (`Tensor`, or `Consumed` if dead after the call) and its parameters with their
kinds. Its docstring says what it computes. Its body is the shape rule: the valid inputs, and whose memory the result
takes. The recorder, the sharing of buffers, C++'s arguments and a GPU's launches all follow from these.

Shape letters, used in every backend:

    T tokens in the step      S sequences in the step     N rows of logits wanted
    H hidden size             Q query heads               K key/value heads
    D head dimension          V vocabulary                G cache groups

Activations are float32 in the cpu and reference backends, whatever the weights' type. For dense weights, results agree
with the reference to 1e-4 relative error. For block-quantised weights the cpu backend may quantise activations to int8
per block of 32 (see `linear`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import Mixture
from octavo.kernels.op import Op, Result, declared_by, op, over
from octavo.kernels.parameters import Linear, Parameter

Tensor = Any  # a backend's own value: a torch tensor, or a value of a recorded program
Consumed = Any  # a Tensor that is dead after the call: results may overwrite it

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Index = Literal["input_ids", "positions", "token_types"]
Outside = Literal["error", "zeros"]

#: kinds of parameters that are words -> the allowed words, in the order of their C++ enum
WORDS: dict[str, tuple[str, ...]] = {
    "Activation": get_args(Activation),
    "Index": get_args(Index),
    "Outside": get_args(Outside),
}


class Ops:
    """The ops that a model's forward pass may call. Every value is [T, width] float32 unless stated otherwise. A
    backend's subclass implements `apply`."""

    def apply(self, op: Op, inputs: tuple[Tensor, ...], arguments: dict[str, Any]) -> Any:
        raise NotImplementedError

    @op(error=2e-6)
    def embedding(
        self, table: Parameter, index: Index, *, offset: int = 0, scale: float = 1.0, outside: Outside = "error"
    ) -> Tensor:
        """table[index + offset] * scale -> [T, columns of the table]. outside: what an index without a row gives, which
        other ranks may have."""
        return Result(table.shape[1])

    @op(error=2e-5)
    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        """[T, in] -> [T, out]. Block-quantised parts: the backend may round x to int8 per 32 columns, an
        error of at most max|x_block| / 254 an element before the product."""
        assert x.width == weight.in_features, f"linear of {weight.in_features} columns on a tensor of {x.width}"
        assert all(part.shape[1] == weight.in_features for part in weight.parts), "all parts read the same columns"
        biased = [bias.shape for bias in weight.biases]
        assert biased in ([], [part.shape[:1] for part in weight.parts]), "each part has one bias entry per output"
        return Result(weight.out_features)

    @op(error=5e-6)
    def rms_norm(self, x: Tensor, weight: Parameter, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
        assert weight.shape == (x.width,), f"weights {weight.shape} of a norm of {x.width} columns"
        return Result(x.width)

    @op(error=5e-6)
    def add_rms_norm(self, x: Consumed, residual: Consumed, weight: Parameter, eps: float) -> tuple[Tensor, Tensor]:
        """s = x + residual; returns (rms_norm(s), s)."""
        assert x.width == residual.width, f"add_rms_norm of widths {x.width} and {residual.width}"
        assert weight.shape == (x.width,), f"weights {weight.shape} of a norm of {x.width} columns"
        return over(x), over(residual)

    @op(error=5e-6)
    def norm_queries_keys(
        self, x: Consumed, queries: Parameter, keys: Parameter, query_width: int, key_width: int, eps: float,
        num_ranks: int = 1,
    ) -> Any:  # fmt: skip
        """x with rms_norm of its first columns, the queries, and of those after them, the keys, in their place. With
        several ranks, which have as many columns each, over the columns of all; then a second result is the memory in
        which they add up float32 means."""
        assert query_width + key_width <= x.width, f"{query_width} and {key_width} columns of {x.width}"
        assert (queries.shape, keys.shape) == ((query_width,), (key_width,)), "a weight for each column"
        return over(x) if num_ranks == 1 else (over(x), Result(8))

    @op(error=2e-5)
    def layer_norm(self, x: Tensor, weight: Parameter, bias: Parameter | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias, over the last dimension."""
        assert weight.shape == (x.width,), f"weights {weight.shape} of a norm of {x.width} columns"
        assert bias is None or bias.shape == weight.shape, f"a bias {bias.shape} beside weights {weight.shape}"
        return Result(x.width)

    @op(error=2e-6, elementwise=True)
    def add(self, x: Consumed, y: Consumed) -> Tensor:
        """x + y."""
        assert x.width == y.width, f"add of widths {x.width} and {y.width}"
        return over(x)

    @op(error=2e-6, elementwise=True)
    def activation(self, x: Consumed, kind: Activation) -> Tensor:
        """silu, gelu, gelu_tanh or relu."""
        return over(x)

    @op(error=2e-6)
    def all_reduce(self, x: Consumed) -> Tensor:
        """The sum of all ranks' x, the same bits on each. Every rank calls it with as many rows."""
        assert x.width == x.stride, "ranks add up whole rows"
        return over(x)

    @op(error=2e-6)
    def gated_activation(self, gate_up: Tensor, kind: Activation) -> Tensor:
        """[T, 2F] -> [T, F]: act(gate) * up; gate is the first half of the columns."""
        assert gate_up.width % 2 == 0, f"gate and up share the columns evenly, got {gate_up.width}"
        return Result(gate_up.width // 2)

    @op(error=2e-6)
    def gate_rows(self, x: Consumed, gate: Tensor) -> Tensor:
        """x * sigmoid(gate), with one gate a token: [T, width], [T, 1] -> [T, width]."""
        assert gate.width == 1, f"one gate a token, got {gate.width}"
        return over(x)

    @op(error=5e-5)
    def mixture(self, x: Tensor, layer: Mixture) -> Tensor:
        """[T, H] -> [T, H]: the weighted sum of the experts that the layer's router chooses for each token, of those
        that are here. Its products may round as `linear`'s do; the choice is by float32 scores, and of equal scores the
        first."""
        assert x.width == layer.router.in_features == layer.gate_up.in_features == layer.down.out_features, (
            f"experts of {layer.gate_up.in_features} columns on a tensor of {x.width}"
        )
        assert layer.gate_up.out_features == 2 * layer.down.in_features, "a gate and up of the same width"
        assert layer.router.out_features == layer.routing.num_experts, "a logit for each expert"
        return Result(x.width)

    @op(error=5e-6)
    def rotary_kv_write(self, qkv: Consumed, layer: AttentionLayer) -> Tensor:
        """Split [T, (Q + 2K) * D] into q, k, v; norm and rotate q and k; write k and v into the cache at the
        step's slots; return q [T, Q * D]. Mutates the KV cache."""
        heads = layer.num_heads + 2 * layer.num_kv_heads
        assert qkv.width == heads * layer.head_dim, f"q, k and v of {heads} heads in a tensor of {qkv.width} columns"
        assert layer.rotary is None or layer.rotary.rotary_dim <= layer.head_dim, "a head has every rotated dimension"
        return Result(layer.num_heads * layer.head_dim, within=qkv)

    @op(error=2e-5)
    def latent_kv_write(self, q: Tensor, kv: Consumed, layer: AttentionLayer) -> Tensor:
        """Norm a token's latent, rotate its key, and write both into the cache at the step's slots; return each head's
        query on the latents' side, beside its rotated part: [T, Q * (N + P)], [T, R + P] -> [T, Q * (R + P)]. Mutates
        the KV cache."""
        latent = layer.latent
        assert latent is not None, "the layer has latents"
        rotary_dim = layer.head_dim - latent.rank
        assert q.width == layer.num_heads * (latent.key_dim + rotary_dim), f"queries in a tensor of {q.width} columns"
        assert kv.width == layer.head_dim, f"a latent and a key of {layer.head_dim} in a tensor of {kv.width} columns"
        assert layer.rotary is not None, "what is beside the latent rotates"
        assert layer.rotary.rotary_dim == rotary_dim, f"{layer.rotary.rotary_dim} of {rotary_dim} numbers rotate"
        return Result(layer.num_heads * layer.head_dim)

    @op(error=2e-5)
    def latent_values(self, x: Tensor, layer: AttentionLayer) -> Tensor:
        """Each head's value of the latents that it has gathered: [T, Q * R] -> [T, Q * V]."""
        assert layer.latent is not None, "the layer has latents"
        assert x.width == layer.num_heads * layer.latent.rank, f"all heads' latents in a tensor of {x.width} columns"
        return Result(layer.num_heads * layer.latent.value_dim)

    @op(error=2e-5)
    def paged_attention(self, q: Tensor, layer: AttentionLayer) -> Tensor:
        """Attention of each token over its own sequence's keys and values, through its block table; causal, unless the
        layer says otherwise.
        [T, Q * D] -> [T, Q * D], of latents [T, Q * R]. Any mix of prefill chunks and decodes: sequence s owns the
        tokens query_start_loc[s] .. query_start_loc[s+1]-1, the last of which has position seq_lens[s] - 1.
        Blocks wholly outside the window may be null (id 0) and are never read."""
        assert q.width == layer.num_heads * layer.head_dim, f"{layer.num_heads} heads in a tensor of {q.width} columns"
        return Result(layer.num_heads * layer.value_dim)

    @op(error=2e-5)
    def add_adapters(self, y: Consumed, x: Tensor, module: AdaptedModule) -> Tensor:
        """y + x A^T B^T with the matrices of each token's adapter: [T, out], [T, in] -> [T, out]. y was made from x."""
        assert not module.is_table, "an embedding's inputs are tokens"
        assert (y.width, x.width) == (module.out_features, module.in_features), (
            f"adapters of {module.name} on tensors of {y.width} and {x.width} columns"
        )
        return over(y)

    @op(error=2e-5)
    def add_table_adapters(self, y: Consumed, module: AdaptedModule, offset: int) -> Tensor:
        """y + A[:, id + offset] B^T with the matrices of each token's adapter, for an embedding: [T, out] -> [T, out].
        A token without a column, which another rank has, adds nothing."""
        assert module.is_table, "the inputs are tokens"
        assert y.width == module.out_features, f"adapters of {module.name} on a tensor of {y.width} columns"
        return over(y)

    @op(error=2e-6, elementwise=True)
    def softcap(self, x: Consumed, cap: float) -> Tensor:
        """cap * tanh(x / cap)."""
        return over(x)

    @op(error=2e-6, elementwise=True)
    def scale(self, x: Consumed, factor: float) -> Tensor:
        """x * factor."""
        return over(x)


#: every op by name
OPS = declared_by(Ops)
