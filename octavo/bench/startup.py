"""Start-up time of a fresh process: until the engine is ready, and until the first token.

cold    with an empty kernel cache: everything is built
warm    with the kernels of the last run
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from octavo.errors import OctavoError

#: runs in the fresh process; its argument is the options, its last line the result
_SCRIPT = """
import json, sys, time
begin = time.perf_counter()
from octavo import LLM, SamplingParams
imported = time.perf_counter()
with LLM(**json.loads(sys.argv[1])) as llm:
    ready = time.perf_counter()
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1), use_tqdm=False)
    answered = time.perf_counter()
print(json.dumps({"import": imported - begin, "ready": ready - begin, "first_token": answered - begin}))
"""


def start_once(options: Mapping[str, Any], is_cold: bool) -> dict[str, float]:
    """Seconds from the first line of Python to: octavo imported, engine ready, first token. "process" is the whole
    process, with interpreter start and exit. Raises OctavoError with the process's last line if it fails."""
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | ({"OCTAVO_CACHE_DIR": empty, "TRITON_CACHE_DIR": empty} if is_cold else {})
        begin = time.perf_counter()
        command = [sys.executable, "-c", _SCRIPT, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, and not a word"]
        raise OctavoError(f"the engine did not start: {said[-1]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times | {"process": seconds}
