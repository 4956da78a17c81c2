"""Which engines of a server lend KV blocks, and which borrow them from whom.

prefill_engines=1, data_parallel_size=2     engine 0, engine 1 ◀── blocks ── engine 2          one server
role=decode, kv_peer=a:14579                engine 0 ◀── blocks ── engine of another server    role=prefill there
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from octavo import env
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.processes.household import UNIX, TrafficTask
from octavo.server_config import TransferConfig, host_and_port


def traffic_tasks(transfer: TransferConfig, config: EngineConfig, run_directory: str) -> Sequence[TrafficTask | None]:
    """A task for each engine: those that answer, then those that only compute prompts."""
    num_engines = config.backend.data_parallel_size
    if transfer.role == "both" and not transfer.prefill_engines:
        return [None] * num_engines
    _check(config)
    if transfer.prefill_engines:
        addresses = [f"{UNIX}{run_directory}/blocks-{number}" for number in range(transfer.prefill_engines)]
        secret = secrets.token_bytes(32)
        borrows = _task(transfer, secret, peers=tuple(addresses))
        return [borrows] * num_engines + [_task(transfer, secret, listens=address) for address in addresses]
    secret = env.kv_secret().encode()
    if transfer.role == "decode":
        return [_task(transfer, secret, peers=transfer.kv_peer)] * num_engines
    host, port = host_and_port("kv_listen", transfer.kv_listen)
    return [_task(transfer, secret, listens=f"{host}:{port + number}") for number in range(num_engines)]


def _task(
    transfer: TransferConfig, secret: bytes, *, listens: str | None = None, peers: tuple[str, ...] = ()
) -> TrafficTask:
    return TrafficTask(
        secret=secret,
        timeout_s=transfer.kv_transfer_timeout,
        min_tokens=transfer.kv_min_tokens,
        listens=listens,
        peers=peers,
    )


def _check(config: EngineConfig) -> None:
    """Raise ConfigError for options that do not go with blocks that travel."""
    if config.backend.distributed_executor_backend == "ray":
        raise ConfigError(
            "distributed_executor_backend is 'ray', allowed with prefill_engines or a role is 'mp': the engine reads "
            "and writes KV blocks of ranks on its own machine"
        )
    if not config.cache.enable_prefix_caching:
        raise ConfigError(
            "enable_prefix_caching is False, allowed with prefill_engines or a role is True: KV blocks that travel are "
            "found by their hashes"
        )
