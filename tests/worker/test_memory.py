"""The KV cache's size: how it is chosen, and the errors when it does not fit."""

from dataclasses import replace

import pytest

from octavo.config import CacheConfig
from octavo.errors import ConfigError, OutOfMemoryError
from octavo.kernels.host_device import HostDevice
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.ledger import Ledger
from octavo.observe.machine import memory
from octavo.worker.memory import plan_kv_cache

LAYOUT = KVLayout(num_blocks=0, block_size=16, groups=(KVGroup(2, 2, 8),), dtype="float32")
BLOCK = LAYOUT.block_bytes


def plan(config: CacheConfig, max_model_len: int = 160, is_len_asked: bool = True, num_groups: int = 1):
    layout = replace(LAYOUT, groups=LAYOUT.groups * num_groups)
    return plan_kv_cache(config, layout, 4, max_model_len, is_len_asked, HostDevice().free_bytes(Ledger(()), 1.0))


def test_block_bytes_count_keys_and_values_of_every_layer() -> None:
    assert BLOCK == 2 * (2 * 2 * 16 * 8 * 4)
    assert replace(LAYOUT, dtype="float16").block_bytes == BLOCK // 2


def test_bytes_become_whole_blocks() -> None:
    assert plan(CacheConfig(kv_cache_memory_bytes=20 * BLOCK + 7)).num_blocks == 20


def test_more_memory_than_sequences_can_fill_is_left_alone() -> None:
    assert plan(CacheConfig(kv_cache_memory_bytes=10_000 * BLOCK)).num_blocks == 4 * 10 + 1


def test_override_is_taken_as_it_is() -> None:
    assert plan(CacheConfig(num_gpu_blocks_override=5000)).num_blocks == 5000


def test_an_asked_context_that_does_not_fit_is_refused_with_the_cure() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"needs 10 KV blocks .* holds 4; set max_model_len to 64 or less"
    ) as error:
        plan(CacheConfig(kv_cache_memory_bytes=5 * BLOCK))
    assert f"kv_cache_memory_bytes to {11 * BLOCK} or more" in str(error.value)
    assert plan(CacheConfig(kv_cache_memory_bytes=11 * BLOCK)).max_model_len == 160


def test_the_models_own_context_is_lowered_to_what_fits() -> None:
    budget = plan(CacheConfig(kv_cache_memory_bytes=9 * BLOCK), is_len_asked=False, num_groups=2)
    assert budget.max_model_len == 4 * 16


def test_a_cache_without_a_block_a_group_is_refused() -> None:
    with pytest.raises(OutOfMemoryError, match=f"set kv_cache_memory_bytes to {4 * BLOCK} or more"):
        plan(CacheConfig(kv_cache_memory_bytes=BLOCK), num_groups=3)


def test_the_cure_is_the_option_that_decides() -> None:
    with pytest.raises(OutOfMemoryError, match="or num_gpu_blocks_override to 11 or more"):
        plan(CacheConfig(num_gpu_blocks_override=5, kv_cache_memory_bytes=100 * BLOCK))
    with pytest.raises(OutOfMemoryError, match="set num_gpu_blocks_override to 4 or more"):
        plan(CacheConfig(num_gpu_blocks_override=2), num_groups=3)


def test_free_memory_is_a_plausible_number() -> None:
    assert 1 << 26 < memory()[1] < 1 << 50


def test_a_device_gives_what_it_has_left() -> None:
    config = CacheConfig()
    assert plan_kv_cache(config, LAYOUT, 4, 160, True, free_bytes=21 * BLOCK + 5).num_blocks == 21
    asked = CacheConfig(kv_cache_memory_bytes=15 * BLOCK)
    assert plan_kv_cache(asked, LAYOUT, 4, 160, True, free_bytes=21 * BLOCK).num_blocks == 15


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_of_memory_is_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization is .*, allowed is more than 0, and 1 at most"):
        CacheConfig(gpu_memory_utilization=share)


def test_where_there_is_no_more_memory_more_is_no_cure() -> None:
    """The plan of all parts names one."""
    for max_model_len, free in ((160, 5 * BLOCK), (160, 0)):
        with pytest.raises(OutOfMemoryError) as caught:
            plan_kv_cache(CacheConfig(), LAYOUT, 4, max_model_len, True, free, is_rest=True)
        assert "set " not in str(caught.value)
    with pytest.raises(OutOfMemoryError, match="set max_model_len to 64 or less, or kv_cache_memory_bytes to"):
        plan_kv_cache(CacheConfig(kv_cache_memory_bytes=5 * BLOCK), LAYOUT, 4, 160, True, 0, is_rest=True)
