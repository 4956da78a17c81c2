"""How many ranks may share a model, and where its matrices may be cut between them.

attention    whole heads; a KV head that more ranks read than one is on each of them
experts      whole, with enable_expert_parallel: expert e on one rank; otherwise as MLPs
MLP          units of the down projection's inputs: its blocks of numbers, or runs of eight where it has none
vocabulary   anywhere
stages       consecutive layers; the earlier stages have one more where they do not divide, as the last has the LM head
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from octavo.distributed.expert_placement import first_slots
from octavo.errors import ConfigError
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import ExpertSlots


def layers_of(num_layers: int, stage: int, num_stages: int) -> range:
    """A stage's layers. Raises ConfigError if some stages would have none."""
    if num_stages > num_layers:
        raise ConfigError(
            f"pipeline_parallel_size is {num_stages}, but the model has {num_layers} layers, and each stage needs one: "
            f"allowed are 1 to {num_layers}"
        )
    return range(-(-stage * num_layers // num_stages), -(-(stage + 1) * num_layers // num_stages))


def own_kv_heads(num_heads: int, num_kv_heads: int, num_ranks: int) -> int:
    """How many KV heads a rank has. Raises ConfigError if the heads do not divide."""
    if num_ranks not in (sizes := head_splits(num_heads, num_kv_heads)):
        raise ConfigError(
            f"tensor_parallel_size is {num_ranks}, but the model has {num_heads} attention heads and {num_kv_heads} "
            f"key/value heads: allowed are {_shown(sizes)}"
        )
    return max(1, num_kv_heads // num_ranks)


def own_experts(num_experts: int, rank: int, num_ranks: int) -> range:
    """Those that a rank has whole. Raises ConfigError if some ranks would have none."""
    if num_ranks > num_experts:
        raise ConfigError(
            f"tensor_parallel_size is {num_ranks}, but the model's layers have {num_experts} experts, and with "
            f"enable_expert_parallel each rank needs one: allowed are up to {num_experts} ranks"
        )
    return range(rank * num_experts // num_ranks, (rank + 1) * num_experts // num_ranks)


def expert_slots(num_experts: int, num_redundant: int, num_ranks: int) -> ExpertSlots:
    """Of ranks whose experts change places. Raises ConfigError if they cannot have as many each."""
    if num_ranks == 1:
        raise ConfigError(
            "enable_eplb is True, which balances experts between ranks, and tensor_parallel_size is 1: set it to 2 or "
            "more, or leave enable_eplb out"
        )
    num_slots, most = num_experts + num_redundant, num_experts * (num_ranks - 1)
    if num_slots % num_ranks == 0 and num_redundant <= most:
        return ExpertSlots(num_slots, min(num_ranks, num_redundant + 1))
    least = -num_experts % num_ranks
    raise ConfigError(
        f"num_redundant_experts of eplb_config is {num_redundant}, but {num_experts} experts and these do not give "
        f"{num_ranks} ranks as many each, all different: allowed are {least} to {most - (most - least) % num_ranks} in "
        f"steps of {num_ranks}"
    )


def own_slots(slots: ExpertSlots, num_experts: int, rank: int, num_ranks: int) -> tuple[int, list[int]]:
    """The first of a rank's slots, and the experts that its slots hold at first."""
    size = slots.num_slots // num_ranks
    return rank * size, first_slots(num_experts, slots.num_slots)[rank * size : (rank + 1) * size]


def own_heads(layer: AttentionLayer, num_ranks: int, block_len: int = 1) -> AttentionLayer:
    """A rank's heads of a layer. block_len: inputs of the output projection that cannot be cut apart. Raises
    ConfigError if the heads do not divide."""
    if num_ranks == 1:
        return layer
    heads, keys = layer.num_heads, layer.num_kv_heads
    own_keys = own_kv_heads(heads, keys, num_ranks)
    dim = layer.head_dim if layer.latent is None else layer.latent.value_dim
    if heads // num_ranks * dim % block_len:
        raise ConfigError(
            f"tensor_parallel_size is {num_ranks}, but {heads // num_ranks} heads of {dim} do not fill the "
            f"blocks of {block_len} numbers that the output projection is stored in: allowed are "
            f"{_shown(n for n in head_splits(heads, keys) if heads // n * dim % block_len == 0)}"
        )
    return replace(layer, num_heads=heads // num_ranks, num_kv_heads=own_keys)


def granule(inputs: int, block_len: int, num_ranks: int) -> int:
    """How many inputs of an MLP's down projection stay together. Raises ConfigError if some ranks would have none."""
    runs = [run for run in (8, 4, 2, 1) if inputs % run == 0] if block_len == 1 else [block_len]
    for size in runs:
        if inputs % (size * num_ranks) == 0:
            return size
    if inputs // runs[0] >= num_ranks:
        return runs[0]
    raise ConfigError(
        f"tensor_parallel_size is {num_ranks}, but the model's MLP has {inputs} inputs, which divide in runs of "
        f"{runs[0]}: allowed are up to {inputs // runs[0]} ranks"
    )


def head_splits(num_heads: int, num_kv_heads: int) -> list[int]:
    """The numbers of ranks that attention divides into."""
    return [
        n for n in range(1, num_heads + 1) if num_heads % n == 0 and (num_kv_heads % n == 0 or n % num_kv_heads == 0)
    ]


def _shown(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
