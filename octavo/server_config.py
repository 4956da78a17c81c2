"""Options of a server: its address, processes and limits. As in `config.py`, each field is also a flag."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from octavo.checked_fields import checked, knob
from octavo.errors import ConfigError
from octavo.observe.machine import num_cores

Role = Literal["both", "prefill", "decode"]


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Limits of a server's waiting queue."""

    max_num_queued_reqs: int | None = knob(None, "most waiting requests; more get 503; default: no limit", at_least=0)
    max_num_queued_tokens: int | None = knob(
        None, "most prompt tokens that wait to be computed; then requests get 503; default: no limit", at_least=0
    )
    queue_timeout: float | None = knob(
        None, "most seconds a request waits before its first step; after them it gets 503; default: no limit"
    )

    def __post_init__(self) -> None:
        if self.queue_timeout is not None and self.queue_timeout <= 0:
            raise ConfigError(f"queue_timeout is {self.queue_timeout}, allowed is more than 0")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """Prefill and decode in engines of their own, which hand each other KV blocks."""

    prefill_engines: int = knob(
        0, "engines that only compute prompts, beside data_parallel_size ones that answer", at_least=0, at_most=1024
    )
    role: Role = knob(
        "both",
        "prefill: lend blocks at kv_listen to other servers' engines; decode: have prompts computed at kv_peer; both: "
        "neither, this server's engines compute prompts and answers",
        spellings={"kv_producer": "prefill", "kv_consumer": "decode", "kv_both": "both"},
    )
    kv_listen: str = knob(
        "127.0.0.1:14579", "HOST:PORT where a prefill server lends blocks; its second engine has the next port"
    )
    kv_peer: tuple[str, ...] = knob((), "HOST:PORT of each engine that a decode server has prompts computed by")
    kv_transfer_timeout: float = knob(
        30.0, "seconds that a request waits for blocks of another engine; then its prompt is computed here"
    )
    kv_min_tokens: int = knob(
        64, "prompts with fewer tokens to compute are computed where they are answered", at_least=1
    )

    def __post_init__(self) -> None:
        if not 0 < self.kv_transfer_timeout < math.inf:
            raise ConfigError(f"kv_transfer_timeout is {self.kv_transfer_timeout}, allowed is more than 0")
        if self.prefill_engines and self.role != "both":
            raise ConfigError(
                f"prefill_engines is {self.prefill_engines} and role is {self.role!r}: engines of one server need no "
                "role; leave out one of the two"
            )
        if self.role == "decode" and not self.kv_peer:
            raise ConfigError("role is 'decode' and kv_peer is empty: name the prefill engines, such as 10.0.0.7:14579")
        if self.role != "decode" and self.kv_peer:
            raise ConfigError(f"kv_peer is {self.kv_peer[0]!r} and role is {self.role!r}: only role 'decode' has peers")
        for name, addresses in (("kv_listen", (self.kv_listen,)), ("kv_peer", self.kv_peer)):
            for address in addresses:
                host_and_port(name, address)


def host_and_port(name: str, address: str) -> tuple[str, int]:
    """name: of the option, for the error."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name} is {address!r}, allowed is HOST:PORT, such as 10.0.0.7:14579")
    return host.strip("[]"), int(port)


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server's address, processes, limits and shutdown."""

    host: str | None = knob(None, "address to listen on; default: every IPv4 interface (127.0.0.1: this machine only)")
    port: int = knob(8000, "port to listen on; 0: any that is free", at_least=0, at_most=65535)
    uds: str | None = knob(None, "path of a Unix socket to listen on, in place of host and port")
    api_server_count: int = knob(1, "processes for HTTP, text and tokens; each talks to every engine", at_least=1)
    ssl_keyfile: str | None = knob(None, "private key; with ssl_certfile: serve https")
    ssl_certfile: str | None = knob(None, "certificate chain; with ssl_keyfile: serve https")
    ssl_ca_certs: str | None = knob(None, "authorities whose client certificates are accepted; every client needs one")
    timeout_keep_alive: int = knob(
        65, "seconds a connection may be idle; above proxies' and clients' limits, or they use closed ones", at_least=1
    )
    timeout_request_head: int = knob(30, "seconds for a request's headers to arrive", at_least=1)
    timeout_request_body: int = knob(
        300, "seconds for a request's body to arrive, and that a client may leave its answer unread", at_least=1
    )
    max_idle_connections: int = knob(
        1024, "most connections of a front end without a whole request; the longest idle one makes room", at_least=1
    )
    h11_max_incomplete_event_size: int = knob(65536, "most bytes of a request's headers or trailers", at_least=1024)
    h11_max_header_count: int = knob(256, "most headers of a request", at_least=1)
    shutdown_timeout: int = knob(
        0, "seconds that running requests may go on after SIGTERM or Ctrl-C; 0: end them at once", at_least=0
    )
    engine_hang_timeout: float = knob(
        300.0,
        "seconds without a sign of life after which the engine is killed and restarted; 0: never. Keep it above the "
        "longest step: minutes for a long prompt on a few cores. First steps compile kernels and get at least 600",
    )
    front_end_hang_timeout: float = knob(
        60.0, "seconds without a sign of life after which a front end is killed and restarted; 0: never"
    )
    enable_log_requests: bool = knob(False, "log a line for every request: its id, its size, its sampling parameters")
    disable_log_stats: bool = knob(False, "do not log the engine's throughput every ten seconds")

    def __post_init__(self) -> None:
        most = max(16, 8 * num_cores())
        if self.api_server_count > most:
            raise ConfigError(
                f"api_server_count is {self.api_server_count}, allowed is 1 to {most}: each is a process, and "
                f"{num_cores()} cores run them all"
            )
        if self.uds is not None and self.host is not None:
            raise ConfigError(f"host is {self.host!r} and uds is {self.uds!r}, allowed is one of them")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("https needs both ssl_keyfile and ssl_certfile, got one of them")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_ca_certs is of no use without ssl_keyfile and ssl_certfile: give them, or drop it")
        for name in ("engine_hang_timeout", "front_end_hang_timeout"):
            seconds = getattr(self, name)
            if not (seconds == 0 or 1 <= seconds < math.inf):
                raise ConfigError(f"{name} is {seconds}, allowed are 1 or more seconds, and 0 for never")
