"""DeepSeek V2 and V3, and Kimi K2, which is a DeepSeek V3: latent attention, and layers of experts.

    queries      q_proj, or q_b_proj(norm(q_a_proj x)) where q_lora_rank is set
    latents      kv_a_proj_with_mqa: a token's latent, and its rotated key
    kv_b_proj    from a latent to each head's key and value

Sizes are in `LatentConfig`, the attention in `octavo/kernels/latent.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.kernels.latent import Latent
from octavo.kernels.parameters import Shard
from octavo.layers.blocks import MLP, LatentAttention
from octavo.models import llama
from octavo.models.architecture import Architecture, LatentConfig
from octavo.models.decoder import AttentionSpecs, Decoder
from octavo.models.splits import own_heads
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases

_EPS = 1e-6  # of the norms of latents, whatever the model's is


def tensors(a: Architecture) -> TensorTable:
    """As if no layer had experts."""
    c, hidden, inner = _config(a), a.hidden_size, a.intermediate_size
    queries = a.num_heads * (c.key_dim + c.rotary_dim)
    layer: TensorTable = {
        "input_layernorm.weight": (hidden,),
        "self_attn.kv_a_proj_with_mqa.weight": (c.rank + c.rotary_dim, hidden),
        "self_attn.kv_a_layernorm.weight": (c.rank,),
        "self_attn.kv_b_proj.weight": (a.num_heads * (c.key_dim + c.value_dim), c.rank),
        "self_attn.o_proj.weight": (hidden, a.num_heads * c.value_dim),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    biased = ["self_attn.kv_a_proj_with_mqa", "self_attn.o_proj"]
    if c.query_rank is None:
        layer["self_attn.q_proj.weight"] = (queries, hidden)
    else:
        layer["self_attn.q_a_proj.weight"] = (c.query_rank, hidden)
        layer["self_attn.q_a_layernorm.weight"] = (c.query_rank,)
        layer["self_attn.q_b_proj.weight"] = (queries, c.query_rank)
        biased.append("self_attn.q_a_proj")
    if a.attention_bias:
        layer = with_biases(layer, *biased)
    return llama.outer_tensors(a) | in_layers(a, layer)


def build(a: Architecture, weights: Weights, specs: AttentionSpecs, *, mlp: Callable[[int, Weights], MLP]) -> Decoder:
    """mlp: as for `llama.build`."""

    def attention(index: int, w: Weights) -> LatentAttention:
        return _attention(a, w.under("self_attn"), specs, index)

    return llama.build(a, weights, specs, attention=attention, mlp=mlp)


def _attention(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> LatentAttention:
    c, heads = _config(a), a.num_heads
    up = w.parameter("kv_b_proj.weight", Shard.heads(heads, heads))
    latent = Latent(c.rank, c.key_dim, c.value_dim, up, c.interleaves)
    layer = specs.layer(index, k_norm=w.parameter("kv_a_layernorm.weight"), latent=latent)
    is_small = c.query_rank is not None
    return LatentAttention(
        query=w.by_heads("q_b_proj" if is_small else "q_proj", heads),
        kv_down=w.replicated("kv_a_proj_with_mqa"),
        out=w.row("o_proj", heads),
        layer=replace(own_heads(layer, w.num_ranks, w.block_len("o_proj")), norm_eps=_EPS),
        query_down=w.replicated("q_a_proj") if is_small else None,
        query_norm=w.rms_norm("q_a_layernorm", _EPS) if is_small else None,
    )


def _config(a: Architecture) -> LatentConfig:
    assert a.latent is not None, "the family has latents"
    return a.latent
