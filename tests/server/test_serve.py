"""`octavo serve` as a user starts it: the real routes, keys, names, a Unix socket and TLS."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.live import until

CODE = "import sys; from octavo.cli.main import main; sys.exit(main())"
ENGINE = ["--num-threads", "1", "--max-model-len", "512", "--num-gpu-blocks-override", "64"]
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}


@contextmanager
def serving(*argv: str) -> Iterator[list[str]]:
    """Wait until the server listens; returns its lines."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CODE, "serve", "smollm2", *ENGINE, *argv]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True).start()
    try:
        until(lambda: any("listening on" in line for line in lines), lines)
        yield lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def chat(connection: http.client.HTTPConnection, key: str) -> tuple[int, dict[str, object]]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_names_keys_and_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    flags = ["--uds", str(path), "--served-model-name", "tiny", "small", "--api-key", "one", "two"]
    with serving(*flags, "--enable-log-requests") as lines:
        assert any(re.match(r"  model +smollm2", line) for line in lines), "the start-up card"
        status, answer = chat(UnixConnection(path), "two")
        assert (status, answer["model"]) == (200, "tiny")
        assert chat(UnixConnection(path), "three")[0] == 401
        until(lambda: any("request chatcmpl-" in line and "max_tokens=4" in line for line in lines), lines)
    assert not path.exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*making, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    flags = ["--host", "127.0.0.1", "--port", "0", "--served-model-name", "tiny"]
    with serving(*flags, "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)) as lines:
        port = next(int(m[1]) for line in lines if (m := re.search(r"https://127.0.0.1:(\d+)", line)))
        trust = ssl.create_default_context(cafile=str(certificate))
        status, answer = chat(http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=60), "any")
        assert (status, answer["object"]) == (200, "chat.completion")
