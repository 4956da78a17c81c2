"""Every family, built from tensors without memory and run on ops that compute nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.conversion import as_embedder
from octavo.models.decoder import Decoder
from octavo.models.pooling import Pooling
from octavo.models.registry import FAMILIES, build_model, required_tensors
from tests.models.architectures import ARCHITECTURES, ENCODERS, LLAMA, NUM_LAYERS, SLOTS
from tests.models.symbolic import BlankTensors, SymbolicOps

families = pytest.mark.parametrize("family", ARCHITECTURES)
encoders = pytest.mark.parametrize("family", ENCODERS)


def build(family: str) -> Decoder:
    return build_model(ARCHITECTURES[family], BlankTensors(), SLOTS, max_model_len=64)


def test_every_family_is_tested() -> None:
    assert set(ARCHITECTURES) | set(ENCODERS) == set(FAMILIES)


@families
@pytest.mark.parametrize("is_tied", [True, False])
def test_builder_takes_exactly_the_tensors_of_the_table(family: str, is_tied: bool) -> None:
    source, architecture = BlankTensors(), replace(ARCHITECTURES[family], tie_word_embeddings=is_tied)
    build_model(architecture, source, SLOTS, max_model_len=64)
    assert source.taken == required_tensors(architecture)
    assert ("lm_head.weight" in source.taken) is not is_tied


@families
def test_forward_respects_the_contract_of_ops(family: str) -> None:
    model, ops, architecture = build(family), SymbolicOps(), ARCHITECTURES[family]
    attended, residual = model.body(ops)
    value_dim = architecture.head_dim if architecture.latent is None else architecture.latent.value_dim
    assert attended.width == architecture.num_heads * value_dim
    assert residual.width == architecture.hidden_size
    assert ops.written == ops.read == SLOTS
    logits = model.heads["logits"](ops, attended, residual)
    assert logits.width == LLAMA.vocab_size
    assert ops.read == SLOTS, "no attention after the cut"


@encoders
def test_an_encoder_keeps_to_its_table_and_gives_hidden_states(family: str) -> None:
    source, ops, architecture = BlankTensors(), SymbolicOps(), ENCODERS[family]
    slots = [(0, 0)] * NUM_LAYERS
    model = build_model(architecture, source, slots, max_model_len=64)
    assert source.taken == required_tensors(architecture)
    hidden = model.heads["hidden_states"](ops, *model.body(ops))
    assert hidden.width == architecture.hidden_size
    assert ops.written == ops.read == slots
    assert not any(layer.attention.layer.is_causal for layer in model.layers)
    assert ops.counts["linear"] == 4 * NUM_LAYERS


@families
def test_a_decoder_that_embeds_needs_no_head(family: str) -> None:
    source, ops = BlankTensors(), SymbolicOps()
    model = build_model(as_embedder(ARCHITECTURES[family], Pooling(kind="LAST")), source, SLOTS, max_model_len=64)
    assert "lm_head.weight" not in source.taken
    assert model.heads["hidden_states"](ops, *model.body(ops)).width == ARCHITECTURES[family].hidden_size


@families
def test_two_projections_a_half_layer_and_no_more(family: str) -> None:
    model, ops = build(family), SymbolicOps()
    hidden = model.body(ops)
    experts = ARCHITECTURES[family].experts
    shared = experts is not None and (2 + experts.has_shared_gate) * (experts.shared_size > 0)
    mlps = [2 if experts is None or i in experts.dense_layers else int(shared) for i in range(3)]
    own, latent = sum(mlps[:-1]), ARCHITECTURES[family].latent
    small = 0 if latent is None else NUM_LAYERS * (1 if latent.query_rank is None else 2)
    own += small
    assert ops.counts["linear"] == 2 * NUM_LAYERS - 1 + own, "what follows the last attention is for logits alone"
    model.heads["logits"](ops, *hidden)
    assert ops.counts["linear"] == 2 * NUM_LAYERS + sum(mlps) + 1 + small, "and the head"
    assert ops.counts["mixture"] == (0 if experts is None else NUM_LAYERS - len(experts.dense_layers))


@families
def test_a_tied_head_is_the_embedding_itself(family: str) -> None:
    model = build(family)
    is_shared = model.head.parts[0] is model.embedding.tokens
    assert is_shared is ARCHITECTURES[family].tie_word_embeddings


def test_layers_with_the_same_rope_share_a_table() -> None:
    global_and_local = {id(layer.attention.layer.rotary) for layer in build("gemma3").layers}
    assert len(global_and_local) == 2
    assert build("gemma3").layers[0].attention.layer.window == 8
    assert len({id(layer.attention.layer.rotary) for layer in build("llama").layers}) == 1


def test_quantised_weights_pass_through_untouched() -> None:
    architecture = replace(LLAMA, intermediate_size=128)
    source = BlankTensors("Q4_1")
    attentions: list[Any] = [layer.attention for layer in build_model(architecture, source, SLOTS, 64).layers]
    dtypes = {part.compact().dtype for attention in attentions for part in attention.qkv.parts}
    assert dtypes == {"Q4_1"}


def test_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'mamba'; Octavo knows bert, deepseek_v2, deepseek_v3, gemma2, gemma3, glm4_moe"
    ):
        required_tensors(replace(LLAMA, family="mamba"))


def test_learned_positions_bound_the_length() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len is 129.*positions for 128 tokens"):
        build_model(ARCHITECTURES["gpt2"], BlankTensors(), SLOTS, max_model_len=129)


OPT_VARIANTS = {
    "normed after": {"do_layer_norm_before": False, "has_final_norm": False, "word_embed_proj_dim": 32},
    "no final norm": {"has_final_norm": False},
    "norms without weights": {"layer_norm_elementwise_affine": False},
    "narrow embedding": {"word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("extra", OPT_VARIANTS.values(), ids=OPT_VARIANTS)
@pytest.mark.parametrize("has_biases", [True, False])
def test_variants_of_opt_keep_to_their_table_and_to_the_contract_of_ops(
    extra: dict[str, object], has_biases: bool
) -> None:
    opt = replace(ARCHITECTURES["opt"], attention_bias=has_biases, mlp_bias=has_biases, extra=extra)
    source, ops = BlankTensors(), SymbolicOps()
    model = build_model(opt, source, SLOTS, max_model_len=64)
    assert source.taken == required_tensors(opt)
    assert model.heads["logits"](ops, *model.body(ops)).width == opt.vocab_size
    assert ops.counts["layer_norm"] == 2 * NUM_LAYERS + extra.get("has_final_norm", True)
