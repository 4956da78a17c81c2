"""One tiny model in every published format, made once for all tests, and its matrices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

from octavo.config import ModelConfig
from octavo.kernels.parameters import Linear, Parameter
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from tests.quantization.written_models import write_model
from tests.tiny_models import make_tiny_model

SIZES = {
    **{"hidden_size": 64, "intermediate_size": 192, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
}


EXPERTS = {"moe_intermediate_size": 64, "norm_topk_prob": True}


@cache
def dense_model(root: Path, family: str = "llama") -> Path:
    more = EXPERTS if "moe" in family else {}
    return make_tiny_model(family, root / family / "source", **SIZES | more)


@cache
def folder_of(root: Path, kind: str, family: str = "llama") -> Path:
    """With the folders `quantised` and `dense` in it."""
    folder = root / family / kind
    write_model(kind, dense_model(root, family), folder / "quantised", folder / "dense")
    return folder


def opened(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder), **options))


def matrices(checkpoint: Checkpoint, rank: int = 0, num_ranks: int = 1) -> dict[str, Parameter]:
    """Those of the layers."""
    model = build_model(checkpoint.architecture, checkpoint, [(0, 0), (0, 1)], 64, rank, num_ranks)
    linears: list[Linear] = [
        linear
        for layer in cast(Any, model.layers)
        for linear in (layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down)
    ]
    return {part.name: part for linear in linears for part in linear.parts}
