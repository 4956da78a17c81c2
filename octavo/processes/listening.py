"""The socket that a server listens on, opened once and inherited by all front ends, which share its connections."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat

from octavo.errors import ConfigError
from octavo.server_config import ServerConfig

#: as in vLLM: a server in a container must be reachable from outside
EVERY_INTERFACE = "0.0.0.0"


def open_socket(config: ServerConfig) -> socket.socket:
    """A bound socket that does not listen: connections are refused until a front end listens. Raises ConfigError."""
    _check_certificates(config)
    if config.uds is not None:
        return _open_unix(config.uds)
    host = config.host or EVERY_INTERFACE
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(f"host is {host!r}, which is no address of this machine: {error.strerror}") from None
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"cannot listen on port {config.port} of {host}: {error.strerror}; choose another --port or --host"
        ) from None
    return opened


def _check_certificates(config: ServerConfig) -> None:
    """Check the files now: front ends would read them too late for a one-line error."""
    if config.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:  # ssl's own errors are of this kind
        raise ConfigError(
            f"ssl_certfile {config.ssl_certfile} and ssl_keyfile {config.ssl_keyfile} cannot be used: {error}; "
            "allowed are a certificate and its own key, as PEM"
        ) from None
    if config.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except OSError as error:
            raise ConfigError(f"ssl_ca_certs {config.ssl_ca_certs} cannot be used: {error}") from None


def _open_unix(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and not _is_answered(path):
            os.unlink(path)  # left by a server that was killed
        opened.bind(path)
    except OSError as error:
        opened.close()
        raise ConfigError(f"cannot listen on --uds {path}: {error.strerror or error}; choose another path") from None
    return opened


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def close_socket(opened: socket.socket, config: ServerConfig) -> None:
    opened.close()
    if config.uds is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(config.uds)


def url_of(opened: socket.socket, config: ServerConfig) -> str:
    """The URL for clients."""
    scheme = "http" if config.ssl_certfile is None else "https"
    if config.uds is not None:
        return f"{scheme}+unix://{config.uds}"
    host, port = opened.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
