"""Families with layers of experts, whose attention is Llama's: Mixtral, Qwen MoE, GLM 4.5, OLMoE, Granite, gpt-oss.

A layer of experts has a router and, for each expert, the three matrices of a gated MLP; `ExpertNames` says what they
are called. Some layers may have one MLP instead, as in a dense model, for which a family's table of tensors is written.
Which, and how the router chooses, are values of `ExpertsConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from octavo.kernels.mixture import ExpertStack, Mixture
from octavo.layers.blocks import MLP, MixtureMLP, SharedExpert
from octavo.models import llama
from octavo.models.architecture import Architecture, ExpertsConfig
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Tensors under a layer's prefix. bias: of the choice, or None. shared: the expert for every token. has_biases: of
    the router and of the experts' matrices."""

    mlp: str = "mlp"
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    bias: str | None = None
    shared: str = "mlp.shared_expert"
    has_biases: bool = False

    def matrices(self, expert: int) -> tuple[str, str, str]:
        """The names of an expert's gate, up and down."""
        gate, up, down = (f"{self.mlp}.experts.{expert}.{name}" for name in (self.gate, self.up, self.down))
        return gate, up, down


MIXTRAL = ExpertNames(mlp="block_sparse_moe", gate="w1", up="w3", down="w2")
QWEN = ExpertNames()
GLM = DEEPSEEK_V3 = ExpertNames(bias="gate.e_score_correction_bias", shared="mlp.shared_experts")
DEEPSEEK_V2 = ExpertNames(shared="mlp.shared_experts")
GPT_OSS = ExpertNames(router="router", has_biases=True)
GRANITE = ExpertNames(mlp="block_sparse_moe", router="router.layer", shared="shared_mlp")


def qwen2_tensors(a: Architecture) -> TensorTable:
    return llama.qwen2_tensors(a) if a.extra["qkv_bias"] else llama.tensors(a)


def glm4_tensors(a: Architecture) -> TensorTable:
    """Some have biases of queries, keys and values, and some norm each head's."""
    return qwen2_tensors(a) | (llama.head_norms(a) if a.extra["qk_norm"] else {})


def olmoe_tensors(a: Architecture) -> TensorTable:
    return llama.tensors(a) | llama.wide_norms(a)


def gpt_oss_tensors(a: Architecture) -> TensorTable:
    return llama.tensors(a) | in_layers(a, {"self_attn.sinks": (a.num_heads,)})


def with_experts(a: Architecture, dense: TensorTable, names: ExpertNames) -> TensorTable:
    """The table of a model whose layers all have one MLP, with experts in the layers that have them."""
    experts = a.experts
    assert experts is not None, "the family has experts"
    prefixes = {f"model.layers.{i}." for i in range(a.num_layers) if i not in experts.dense_layers}
    table = {name: shape for name, shape in dense.items() if name.split("mlp.")[0] not in prefixes}
    layer = dict(_layer_tensors(a.hidden_size, experts, names))
    layer = with_biases(layer) if names.has_biases else layer
    return table | {prefix + name: shape for prefix in sorted(prefixes) for name, shape in layer.items()}


def _layer_tensors(hidden: int, experts: ExpertsConfig, names: ExpertNames) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, shared = experts.intermediate_size, experts.shared_size
    yield f"{names.mlp}.{names.router}.weight", (experts.routing.num_experts, hidden)
    if names.bias is not None:
        yield f"{names.mlp}.{names.bias}", (experts.routing.num_experts,)
    for expert in range(experts.routing.num_experts):
        gate, up, down = names.matrices(expert)
        yield from ((f"{gate}.weight", (inner, hidden)), (f"{up}.weight", (inner, hidden)))
        yield f"{down}.weight", (hidden, inner)
    if shared:
        yield from ((f"{names.shared}.{name}.weight", (shared, hidden)) for name in ("gate_proj", "up_proj"))
        yield f"{names.shared}.down_proj.weight", (hidden, shared)
    if experts.has_shared_gate:
        yield f"{names.shared}_gate.weight", (1, hidden)


def layer_mlp(a: Architecture, index: int, w: Weights, names: ExpertNames) -> MLP:
    """A layer's experts, or its one MLP. w: under the layer's prefix."""
    experts = a.experts
    assert experts is not None, "the family has experts"
    if index in experts.dense_layers:
        return w.gated_mlp(llama.GATE_UP, "mlp.down_proj", a.activation)
    return MixtureMLP(_mixture(w, experts, names), _shared(a, w, experts, names))


def _mixture(w: Weights, experts: ExpertsConfig, names: ExpertNames) -> Mixture:
    """Of all experts the tensors are found, and so missing and unused ones told; a rank keeps its own."""
    held, first, own, slots = w.of_experts(experts.routing.num_experts)
    matrices = [names.matrices(expert) for expert in range(experts.routing.num_experts)]
    gate_up = [held.column(gate, up, num_segments=2, read_by=down) for gate, up, down in matrices]
    down = [held.row(down) for _, _, down in matrices]
    return Mixture(
        name=f"{w.prefix}{names.mlp}",
        routing=experts.routing,
        router=w.replicated(f"{names.mlp}.{names.router}"),
        bias=None if names.bias is None else w.parameter(f"{names.mlp}.{names.bias}"),
        gate_up=ExpertStack(tuple(gate_up[expert] for expert in own)),
        down=ExpertStack(tuple(down[expert] for expert in own)),
        gate=experts.gate,
        first_expert=first,
        slots=slots,
    )


def _shared(a: Architecture, w: Weights, experts: ExpertsConfig, names: ExpertNames) -> SharedExpert | None:
    if not experts.shared_size:
        return None
    gate, up, down = (f"{names.shared}.{name}_proj" for name in ("gate", "up", "down"))
    mlp = w.gated_mlp((gate, up), down, a.activation)
    return SharedExpert(mlp, w.replicated(f"{names.shared}_gate") if experts.has_shared_gate else None)
