"""A Python process that has imported what programs import, and forks itself for each program, which so starts at once.

    test ── program, a JSON line ──▶ warm process ── fork ──▶ the program, to its end
      ◀───────── exit code ──────────────┘                      output in two files

Only for programs whose start is not what is tested: Python, octavo and numpy take a second to import.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIME_LIMIT_S = 300.0
SERVE = """
import json, os, sys, types
import octavo.engine.assemble, octavo.kernels.cpu.device, octavo.llm, octavo.text.tokenizer

for line in sys.stdin:
    program = json.loads(line)
    if (child := os.fork()) == 0:
        break
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
    sys.stdout.flush()
else:
    sys.exit()
os.chdir(program["cwd"])
for number, place in enumerate([os.devnull, *program["outputs"]]):
    os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), number)
sys.stdin = open(0, closefd=False)  # without the lines that were read ahead
sys.argv = program["argv"]
sys.modules["__main__"] = main = types.ModuleType("__main__")
exec(compile(program["code"], program["argv"][0], "exec"), main.__dict__)
"""


class WarmPython:
    """first_on_path: a folder in which its programs look for modules first."""

    def __init__(self, first_on_path: Path | None = None) -> None:
        path = [str(first_on_path)] if first_on_path is not None else []
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, code: str, *argv: str, name: str = "-c", cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run([python, "-c", code, *argv], cwd=cwd, capture_output=True, text=True)`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            outputs = [str(Path(folder) / stream) for stream in ("stdout", "stderr")]
            told = {"code": code, "argv": [name, *argv], "cwd": str(cwd.resolve()), "outputs": outputs}
            self._process.stdin.write(json.dumps(told) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], TIME_LIMIT_S)[0]:
                self.close()
                raise TimeoutError(f"{name} {argv} did not end in {TIME_LIMIT_S} s")
            answer = self._process.stdout.readline()
            assert answer, "the warm process ended: see its standard error"
            stdout, stderr = (Path(place).read_text(encoding="utf-8") for place in outputs)
        return subprocess.CompletedProcess([name, *argv], int(answer), stdout, stderr)

    def close(self) -> None:
        """End it, and the program that it may have begun."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def warm_python(first_on_path: Path | None = None) -> Iterator[WarmPython]:
    python = WarmPython(first_on_path)
    try:
        yield python
    finally:
        python.close()
