"""Converts GGUF tensor names and layouts to the canonical ones.

Canonical means as in Hugging Face's model files: `model.layers.0.self_attn.q_proj.weight`, norms as trained,
rotary pairs half a head apart. A linear weight is always [out, in]. GGUF's differences are undone when a tensor
is read:

    llama    (and granite) Q and K rows are interleaved, pair by pair, for ggml's rotary: their order is restored
    gemma    norm weights have 1 added: it is subtracted
    gpt2     already [out, in], unlike Hugging Face's own files (see checkpoint.py)
    deepseek2   one matrix of latents may be two: see gguf_latent.py
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.tensor import HostTensor, from_array, take_rows
from octavo.models.architecture import Architecture

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_QK_NORM_NAMES = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
#: a * stands for each expert's number, and a + joins two matrices of a stack. A name with its .weight or .bias becomes
#: another one as a whole
_MIXTRAL_NAMES = {
    "blk.{}.ffn_gate_inp": "model.layers.{}.block_sparse_moe.gate",
    "blk.{}.ffn_gate_exps": "model.layers.{}.block_sparse_moe.experts.*.w1",
    "blk.{}.ffn_gate_up_exps": "model.layers.{}.block_sparse_moe.experts.*.w1+w3",
    "blk.{}.ffn_up_exps": "model.layers.{}.block_sparse_moe.experts.*.w3",
    "blk.{}.ffn_down_exps": "model.layers.{}.block_sparse_moe.experts.*.w2",
}
_QWEN_MOE_NAMES = {
    "blk.{}.ffn_gate_inp": "model.layers.{}.mlp.gate",
    "blk.{}.ffn_gate_exps": "model.layers.{}.mlp.experts.*.gate_proj",
    "blk.{}.ffn_gate_up_exps": "model.layers.{}.mlp.experts.*.gate_proj+up_proj",
    "blk.{}.ffn_up_exps": "model.layers.{}.mlp.experts.*.up_proj",
    "blk.{}.ffn_down_exps": "model.layers.{}.mlp.experts.*.down_proj",
    "blk.{}.ffn_gate_inp_shexp": "model.layers.{}.mlp.shared_expert_gate",
    "blk.{}.ffn_gate_shexp": "model.layers.{}.mlp.shared_expert.gate_proj",
    "blk.{}.ffn_up_shexp": "model.layers.{}.mlp.shared_expert.up_proj",
    "blk.{}.ffn_down_shexp": "model.layers.{}.mlp.shared_expert.down_proj",
}
_GRANITE_MOE_NAMES = {
    "blk.{}.ffn_gate_inp": "model.layers.{}.block_sparse_moe.router.layer",
    "blk.{}.ffn_gate_exps": "model.layers.{}.block_sparse_moe.experts.*.gate_proj",
    "blk.{}.ffn_gate_up_exps": "model.layers.{}.block_sparse_moe.experts.*.gate_proj+up_proj",
    "blk.{}.ffn_up_exps": "model.layers.{}.block_sparse_moe.experts.*.up_proj",
    "blk.{}.ffn_down_exps": "model.layers.{}.block_sparse_moe.experts.*.down_proj",
    "blk.{}.ffn_gate_shexp": "model.layers.{}.shared_mlp.gate_proj",
    "blk.{}.ffn_up_shexp": "model.layers.{}.shared_mlp.up_proj",
    "blk.{}.ffn_down_shexp": "model.layers.{}.shared_mlp.down_proj",
}
_DEEPSEEK_NAMES = {
    "blk.{}.attn_q_a": "model.layers.{}.self_attn.q_a_proj",
    "blk.{}.attn_q_a_norm": "model.layers.{}.self_attn.q_a_layernorm",
    "blk.{}.attn_q_b": "model.layers.{}.self_attn.q_b_proj",
    "blk.{}.attn_kv_a_mqa": "model.layers.{}.self_attn.kv_a_proj_with_mqa",
    "blk.{}.attn_kv_a_norm": "model.layers.{}.self_attn.kv_a_layernorm",
    "blk.{}.attn_kv_b": "model.layers.{}.self_attn.kv_b_proj",
    "blk.{}.attn_k_b": "model.layers.{}.self_attn.k_b_proj",
    "blk.{}.attn_v_b": "model.layers.{}.self_attn.v_b_proj",
    "blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
    "blk.{}.ffn_gate_shexp": "model.layers.{}.mlp.shared_experts.gate_proj",
    "blk.{}.ffn_up_shexp": "model.layers.{}.mlp.shared_experts.up_proj",
    "blk.{}.ffn_down_shexp": "model.layers.{}.mlp.shared_experts.down_proj",
}
_GPT_OSS_NAMES = {
    "blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate_inp": "model.layers.{}.mlp.router",
}
_OLMO2_NAMES = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GEMMA_NAMES = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_PHI3_NAMES = {
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
NAMES: dict[str, dict[str, str]] = {
    "llama": _LLAMA_NAMES | _MIXTRAL_NAMES,
    "qwen2": _LLAMA_NAMES,
    "qwen3": _LLAMA_NAMES | _QK_NORM_NAMES,
    "qwen2moe": _LLAMA_NAMES | _QWEN_MOE_NAMES,
    "qwen3moe": _LLAMA_NAMES | _QK_NORM_NAMES | _QWEN_MOE_NAMES,
    "olmo2": _LLAMA_NAMES | _QK_NORM_NAMES | _OLMO2_NAMES,
    "olmoe": _LLAMA_NAMES | _QK_NORM_NAMES | _QWEN_MOE_NAMES,
    "granite": _LLAMA_NAMES,
    "granitemoe": _LLAMA_NAMES | _GRANITE_MOE_NAMES,
    "gpt-oss": _LLAMA_NAMES | _QWEN_MOE_NAMES | _GPT_OSS_NAMES,
    "deepseek2": _LLAMA_NAMES | _QWEN_MOE_NAMES | _DEEPSEEK_NAMES,
    "gemma2": _LLAMA_NAMES | _GEMMA_NAMES,
    "gemma3": _LLAMA_NAMES | _QK_NORM_NAMES | _GEMMA_NAMES,
    "phi3": _LLAMA_NAMES | _PHI3_NAMES,
    "gpt2": _GPT2_NAMES,
}
_INTERLEAVED = ("llama", "granite", "granitemoe")
#: rotary factors, which become values of the Architecture
_READ_AS_CONFIG = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")
_NAME = re.compile(r"(?P<stem>.+)\.(?P<kind>weight|bias)")
_LAYER = re.compile(r"(?<=^blk\.)\d+(?=\.)")
#: a tensor of one expert, as files of early 2024 have them
_EXPERT = re.compile(r"(blk\.\{\}\.ffn_(?:gate|up|down))\.(\d+)")


def canonical_name(gguf_architecture: str, name: str) -> str | None:
    """The canonical name; the file's own name if the table lacks it (it then counts as a leftover); None for
    tensors that are configuration."""
    if _READ_AS_CONFIG.fullmatch(name):
        return None
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer = _LAYER.search(match["stem"])
    names, number = NAMES[gguf_architecture], layer[0] if layer else ""
    if (whole := names.get(_LAYER.sub("{}", name))) is not None:
        return whole.format(number)
    stem = _LAYER.sub("{}", match["stem"])
    if (one := _EXPERT.fullmatch(stem)) and (target := names.get(f"{one[1]}_exps")) is not None:
        return f"{target.format(number).replace('*', str(int(one[2])))}.{match['kind']}"
    target = names.get(stem)
    return name if target is None else f"{target.format(number)}.{match['kind']}"


def layout_change(
    gguf_architecture: str, name: str, architecture: Architecture
) -> Callable[[HostTensor], HostTensor] | None:
    """The conversion of a tensor of this canonical name when it is read, or None."""
    if gguf_architecture in _INTERLEAVED and (".self_attn.q_proj." in name or ".self_attn.k_proj." in name):
        return lambda tensor: restore_rotary_rows(tensor, architecture.head_dim)
    if gguf_architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return subtract_one
    return None


def restore_rotary_rows(tensor: HostTensor, head_dim: int) -> HostTensor:
    """Rows 0, 2, 4, ... of each head become its first half, rows 1, 3, 5, ... its second. Any number of heads."""
    num_rows = tensor.shape[0]
    order = np.arange(num_rows).reshape(-1, head_dim // 2, 2).transpose(0, 2, 1).reshape(-1)
    if len(tensor.shape) > 1:
        return take_rows(tensor, order)
    column = HostTensor(tensor.dtype, (num_rows, 1), tensor.data)  # a bias
    return HostTensor(tensor.dtype, tensor.shape, take_rows(column, order).data)


def subtract_one(tensor: HostTensor) -> HostTensor:
    """In the tensor's own type if that is dense, else in float32."""
    shifted = from_array(dequantize(tensor) - np.float32(1))
    return convert(shifted, tensor.dtype) if tensor.is_dense else shifted
