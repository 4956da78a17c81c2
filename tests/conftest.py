"""Fixtures for tests of whole models (tiny checkpoints, the host's backends), and markers, applied by file.

torch and transformers are imported by the fixtures that need them, so that all other tests start
at once.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# slipcover tells the workers of pytest-xdist everything but the Makefile's --threshold; before octavo is imported.
if (coverage := getattr(sys.modules.get("slipcover.pytest_plugin"), "_slipcover_instance", None)) is not None:
    coverage.d_miss_threshold = 1_000_000_000

from octavo.config import BackendConfig
from octavo.kernels.device import Device
from octavo.kernels.registry import HOST_BACKENDS, ONE_RANK
from octavo.observe.machine import num_cores
from tests.warm_python import WarmPython, warm_python

# OCTAVO_EXECUTOR=mp pytest runs the same tests with the model in a separate process. A test's patches do not reach that
# process; tests that patch the worker use the fixture `inline_executor`.
EXECUTOR = os.environ.get("OCTAVO_EXECUTOR")
BackendConfig.__init__.__wrapped__.__kwdefaults__["distributed_executor_backend"] = EXECUTOR  # type: ignore[attr-defined]

# The workers of pytest-xdist share the cores: a thread too many would wait for its core while the others wait for it.
if "PYTEST_XDIST_WORKER" in os.environ:
    share = max(1, num_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    pytest.MonkeyPatch().setattr("octavo.kernels.cpu.device.num_cores", lambda: share)

TinyFolder = Callable[..., Path]

TESTS = Path(__file__).parent
SLOW = {
    "distributed": "tensor_parallel loading",
    "": "async_llm classify docs embeddings examples extreme_params greedy guide_pictures imports llm logprobs_modes "
    "random_walk real_models session site threads warm_python without_torch",
    "bench": "http_client load offline plot",
    "cli": "bench debugging plan doctor hostile_flags interrupts kernels kernels_new run run_batch",
    "engine": "overlap",
    "executor": "processes ray ranks",
    "kernels": "adapters all_reduce attention attention_plan blocks build dequantize extremes matmul processed_logits "
    "random recorder reference registry sampling token_ops top_logprobs vocabulary_parts",
    "layers": "rotary",
    "lora": "engine peft",
    "models": "architecture families gguf gguf_checkpoint gguf_names gguf_parts hostile_files loader packaged "
    "parameters safetensors stacked_experts weight_files",
    "observe": "metrics tracing",
    "text": "chat_template detokenizer folder_tokenizer gguf_tokenizer sentencepiece_merges template_process "
    "text_bounds tokenizer tokenizer_calls",
    "quantization": "as_stored at_load malformed other_writers published published_configs schemes",
    "sampling": "columns",
    "structured": "engine rows schema_suite",
    "worker": "device_grammars plan",
    "scheduler": "random_runs",
    "testing": "op_bench op_trials",
}
#: marker -> the folders and files whose tests have it. Files that `-m "not slow"` leaves out are not even imported.
MARKED = {
    "gpu": ["gpu"],
    "ray": ["executor/test_ray.py", "executor/test_ray_head.py"],
    "server": [
        *("server", "processes", "test_dashboard.py"),
        *("cli/test_bench_serve.py", "cli/test_server_chat.py", "viz/test_page.py"),
    ],
    "slow": [f"{folder}/test_{name}.py".lstrip("/") for folder, names in SLOW.items() for name in names.split()],
}

# Use the same examples in every run. To try others: pytest --hypothesis-profile=default. A busy machine is no fault.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# A shell without job control starts background jobs with Ctrl-C ignored, and children inherit that: the programs that
# tests interrupt would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The garbage collector need not visit what is imported and collected, hundreds of megabytes, again and again: it takes
# a tenth of the time, and a second wherever the code under test collects by itself.
gc.set_threshold(50_000, 10, 10)  # new objects, in place of 700, which takes a twentieth
_frozen_for: list[Path] = []
pytest.MonkeyPatch().setattr(gc, "unfreeze", lambda: None)  # of a simulation or a benchmark, which would thaw all


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a file's first test, when nothing of other files is alive but what the session keeps."""
    if _frozen_for[-1:] != [item.path]:
        _frozen_for.append(item.path)
        gc.collect()
        gc.freeze()


@cache  # thousands of tests stand in some hundred files
def markers_of(path: Path) -> frozenset[str]:
    """The markers of a file or folder, by its place."""
    return frozenset(name for name, places in MARKED.items() if any(path.is_relative_to(TESTS / one) for one in places))


def pytest_configure() -> None:
    gone = [place for places in MARKED.values() for place in places if not (TESTS / place).exists()]
    assert not gone, f"tests/conftest.py marks what is not there: {', '.join(gone)}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = config.option.markexpr
    left_out = set() if " or " in asked else set(re.findall(r"\bnot (\w+)", asked))
    return True if markers_of(collection_path) & left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in markers_of(item.path):
            item.add_marker(marker)
        if "one_torch_thread" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """Matrices are tiny and the machine may be busy: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for workers in separate processes
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> TinyFolder:
    """name of TINY, seed, dtype, other values of its arguments -> folder."""
    from tests.tiny_models import make_tiny_model

    made: dict[tuple[Any, ...], Path] = {}

    def get(name: str, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
        key = (name, seed, dtype, *changes.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / name
            made[key] = make_tiny_model(name, folder, seed=seed, dtype=dtype, **changes)
        return made[key]

    return get


@pytest.fixture(scope="session")
def python() -> Iterator[WarmPython]:
    with warm_python() as python:
        yield python


@pytest.fixture(params=list(HOST_BACKENDS))
def backend(request: pytest.FixtureRequest) -> Device:
    chosen = HOST_BACKENDS[request.param](BackendConfig(), ONE_RANK)
    if (reason := chosen.why_not()) is not None:
        pytest.skip(reason)
    return chosen


@pytest.fixture
def inline_executor() -> None:
    if EXECUTOR is not None:
        pytest.skip("patches what runs in the engine's own process")
