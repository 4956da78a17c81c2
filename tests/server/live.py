"""A server in separate processes for tests: it serves the plain app, and every process is watched."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import EXECUTOR

CODE = """
import sys
from octavo.server_config import AdmissionConfig, ServerConfig, TransferConfig
from octavo.engine.options import engine_config
from octavo.observe.logging import log_to_stderr
from octavo.server.settings import ServerSettings
from octavo.processes.supervisor import ServeOptions, Supervisor
log_to_stderr("server")
sys.exit(Supervisor(ServeOptions(
    engine=engine_config(**{engine!r}),
    admission=AdmissionConfig(), server=ServerConfig(host="127.0.0.1", port=0, **{server!r}),
    settings={settings}, model_name="smollm2", app="{app}", transfer=TransferConfig(**{transfer!r}),
)).run())
"""
#: the options of its engine
ENGINE: dict[str, Any] = {
    "model": "smollm2",
    "num_threads": 1,
    "max_model_len": 2048,
    "num_gpu_blocks_override": 512,
    "distributed_executor_backend": EXECUTOR,
}
#: the folder with faults for a server's processes
FAULTS = Path(__file__).parent / "faults"
#: the app of the front ends, and its settings: the plain one, or the API
PLAIN = ("tests.server.plain_app:create_app", "None")
API = ("octavo.server.app:create_app", 'ServerSettings(served_model_name=("smollm2",))')
PATIENCE_S = 60.0  # the machine may be busy


class LiveServer:
    """directory: only for its temporary files. path: where its processes look for modules first. engine: options that
    differ from ENGINE. transfer: fields of TransferConfig."""

    def __init__(
        self,
        directory: Path,
        app: tuple[str, str] = PLAIN,
        path: Sequence[Path] = (),
        engine: dict[str, Any] | None = None,
        transfer: dict[str, Any] | None = None,
        **server: Any,
    ) -> None:
        made_of = {"transfer": transfer or {}, "app": app[0], "settings": app[1], "engine": ENGINE | (engine or {})}
        code = CODE.format(server=server, **made_of)
        self.directory = directory
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(directory), "PYTHONPATH": os.pathsep.join([*map(str, path), *sys.path])},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for_line(r"listening on http://127.0.0.1:(\d+)")[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        return until(lambda: next((m for line in self.lines if (m := re.search(pattern, line))), None), self.lines)

    def children(self) -> dict[str, int]:
        """Name -> process id."""
        pid = self.process.pid
        ids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        words = {int(one): Path(f"/proc/{one}/cmdline").read_text().split("\0") for one in ids}
        return {w[3].removeprefix("octavo: "): one for one, w in words.items() if len(w) > 3}

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def is_healthy(self) -> bool:
        return self.get("/health")[0] == 200

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def leftovers(self, children: dict[str, int]) -> list[str]:
        """The processes and files that a server left behind."""
        found = [f"process {name}" for name, one in children.items() if is_running(one)]
        return found + [f"file {path}" for path in self.directory.iterdir()]


class Stream:
    """One streamed answer, read line by line. front_end: the process at the other end."""

    def __init__(self, server: LiveServer, **body: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        self.connection.request("GET", "/pid")
        self.front_end = json.loads(self.connection.getresponse().read())
        self._body = json.dumps(body)

    def start(self) -> dict[str, Any]:
        """Send the request and return the first line: now the request runs."""
        self.connection.request("POST", "/generate", self._body)
        self._answer = self.connection.getresponse()
        self.status = self._answer.status
        return self.line()

    def line(self) -> dict[str, Any]:
        return json.loads(self._answer.readline())

    def rest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._answer]

    def close(self) -> None:
        self.connection.close()


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(found: Callable[[], Any], story: Any = None) -> Any:
    """Wait until a value is true; returns it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            if result := found():
                return result
        time.sleep(0.02)
    raise AssertionError(f"it never came to be: {story}")


@contextlib.contextmanager
def live(
    directory: Path,
    app: tuple[str, str] = PLAIN,
    path: Sequence[Path] = (),
    engine: dict[str, Any] | None = None,
    **server: Any,
) -> Iterator[LiveServer]:
    served = LiveServer(directory, app, path, engine, **server)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()


@contextlib.contextmanager
def live_and_clean(directory: Path, **server: Any) -> Iterator[LiveServer]:
    """A server that must exit cleanly when it is stopped, and leave nothing behind."""
    with live(directory, **server) as served:
        yield served
        children = served.children()
        assert served.stop() == 0, served.lines
        assert served.leftovers(children) == []


def read_answer(server: LiveServer, **fields: Any) -> str:
    """The whole text of one request."""
    stream = Stream(server, **fields)
    lines = [stream.start(), *stream.rest()]
    stream.close()
    return "".join(line["outputs"][0]["text"] for line in lines)
