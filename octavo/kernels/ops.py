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

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear, Parameter

Tensor = Any  # a backend's own value: a torch tensor, or a value of a recorded program
Consumed = Any  # a Tensor that is dead after the call: results may overwrite it

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Index = Literal["input_ids", "positions", "token_types"]
Outside = Literal["error", "zeros"]

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RotaryTable:
    """Rotary angles, computed once per rope setting.

    cos, sin: [max_len, rotary_dim / 2] float32, including any attention scaling.
    Pairs are (i, i + rotary_dim/2), the "neox" order; dimensions past rotary_dim pass through.
    """

    cos: FloatArray
    sin: FloatArray

    @property
    def rotary_dim(self) -> int:
        return 2 * int(self.cos.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class KVScales:
    """What the codes of an 8-bit KV cache are multiplied by. keys, values: [K] float32, a number for each KV head."""

    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ScoreBias:
    """What is added to scores, by how far apart two tokens are. table: [buckets, Q]. buckets: [2 R + 1], of distances
    -R to R of a key from its query; farther ones have the last one's."""

    table: Parameter
    buckets: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """The constants of one layer's attention.

    group, index_in_group: the place of its keys and values (see `kv_layout.py`). scale: multiplies q·k.
    window w: a token at position p sees positions p-w+1 .. p; None sees all. not is_causal: it also sees those after
    it, with a window up to p+w-1; then a step has all tokens of its sequences. softcap c: scores become
    c * tanh(score / c). q_norm, k_norm: RMSNorm weights [D], applied per head before the rotation. sinks [Q]: a
    score of each query head, beside those of keys, that has no value: it takes weight from them. bias: added to scaled
    scores. scales: the checkpoint's; None: codes are the numbers themselves, until scales are calibrated.
    latent: of a layer whose blocks hold keys alone (see `latent.py`): head_dim is R + P, k_norm [R] is the latent's,
    and the P numbers after it rotate.
    """

    group: int
    index_in_group: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    q_norm: Parameter | None = None
    k_norm: Parameter | None = None
    norm_eps: float = 1e-6
    rotary: RotaryTable | None = None
    scales: KVScales | None = None
    bias: ScoreBias | None = None
    is_causal: bool = True
    sinks: Parameter | None = None
    latent: Latent | None = None

    @property
    def value_dim(self) -> int:
        """How many numbers a head gathers."""
        return self.head_dim if self.latent is None else self.latent.rank

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Beside the matrix of latents."""
        bias = None if self.bias is None else self.bias.table
        return tuple(each for each in (self.q_norm, self.k_norm, self.sinks, bias) if each is not None)


@dataclass(frozen=True, slots=True)
class Result:
    """A result of an op: its number of columns, and the input whose first columns it overwrites, or None."""

    width: int
    within: Tensor = None


def over(x: Tensor) -> Result:
    return Result(x.width, within=x)


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One op, as `Ops` declares it.

    inputs: its tensors, in order. consumed: those that are dead afterwards. kinds: its parameters, in order, with their
    annotations. error: the largest relative difference from the reference with float32 activations. is_elementwise:
    each element of the result depends only on the inputs' elements at the same place. results: the shape rule.
    """

    name: str
    inputs: tuple[str, ...]
    consumed: frozenset[str]
    kinds: Mapping[str, str]
    defaults: Mapping[str, Any]
    error: float
    is_elementwise: bool
    results: Callable[..., Any]

    def arguments(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """A call's tensors, and its parameters by name."""
        values = {**self.defaults, **dict(zip((*self.inputs, *self.kinds), given, strict=False)), **named}
        return tuple(values[name] for name in self.inputs), {name: values[name] for name in self.kinds}


#: every op by name, in the order of `Ops`
OPS: dict[str, Op] = {}
#: kinds of parameters that are words -> the allowed words, in the order of their C++ enum
WORDS: dict[str, tuple[str, ...]] = {
    "Activation": get_args(Activation),
    "Index": get_args(Index),
    "Outside": get_args(Outside),
}
_Method = TypeVar("_Method", bound=Callable[..., Any])


def op(*, error: float, elementwise: bool = False) -> Callable[[_Method], _Method]:
    """Declare an op by a method: its signature, and as its body the shape rule."""

    def declare(rule: _Method) -> _Method:
        parameters = list(inspect.signature(rule).parameters.values())[1:]
        inputs = {each.name: each.annotation for each in parameters if each.annotation in ("Tensor", "Consumed")}
        declared = OPS[rule.__name__] = Op(
            name=rule.__name__,
            inputs=tuple(inputs),
            consumed=frozenset(name for name, annotation in inputs.items() if annotation == "Consumed"),
            kinds={each.name: each.annotation for each in parameters if each.name not in inputs},
            defaults={each.name: each.default for each in parameters if each.default is not each.empty},
            error=error,
            is_elementwise=elementwise,
            results=rule,
        )

        @wraps(rule)
        def call(self: Ops, *given: Any, **named: Any) -> Any:
            return self.apply(declared, *declared.arguments(given, named))

        return cast(_Method, call)

    return declare


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
    def norm_columns(self, x: Consumed, weight: Parameter, first: int, width: int, eps: float) -> Tensor:
        """x with rms_norm of its columns first .. first + width - 1 in their place."""
        assert 0 <= first <= x.width - width, f"columns {first} .. {first + width - 1} of {x.width}"
        assert weight.shape == (width,), f"weights {weight.shape} of a norm of {width} columns"
        return over(x)

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


#: (ops, *hidden) -> [N, columns of the head]: the rest of the pass for N of the tokens. Their hidden states, [N, width]
#: each, are dead afterwards.
Head = Callable[..., Tensor]


#: the inputs of a model that begins with tokens
TOKEN_IDS: Mapping[str, int] = MappingProxyType({"input_ids": 1})


class Model(Protocol):
    """What a backend needs of a model: functions over Ops, and their inputs from a step."""

    @property
    def inputs(self) -> Mapping[str, int]:
        """The inputs beside positions, and their columns: TOKEN_IDS, or {"hidden_states": H} of a later stage."""

    @property
    def heads(self) -> Mapping[str, Head]:
        """The output, by name: "logits" [N, V], or "hidden_states" [N, H] for the next stage."""

    def body(self, ops: Ops, *hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The part in which tokens attend to each other -> hidden states, one or more [T, width]. hidden_states: [T, H]
        from the stage before, if they are an input."""
