"""Octavo without torch or any extra, as `pip install octavo` installs it: the CPU path works, the rest names its extra.

A `sitecustomize` on the programs' path hides the extras' packages.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.live import API, live
from tests.warm_python import WarmPython, warm_python

HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "triton", "transformers", "gguf", "accelerate", "flash_attn", "matplotlib"}
HIDDEN |= {"safetensors", "scipy", "openai", "anthropic", "ollama", "schemathesis", "prometheus_client"}
HIDDEN |= {"opentelemetry.sdk", "opentelemetry.exporter"}  # fastapi wants the rest

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
GENERATE = """
from octavo import LLM, SamplingParams
with LLM("smollm2", max_model_len=256) as llm:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2)
    output = llm.chat([{"role": "user", "content": "Hi"}], params, use_tqdm=False)[0].outputs[0]
    assert len(output.token_ids) == 4 and len(output.logprobs) == 4
"""
OCTAVO = "import sys; from octavo.cli.main import main; sys.exit(main())"
#: the same command on a machine whose driver shows a GPU
ON_A_GPU = f"""
from octavo.kernels.cuda import driver
driver.find_gpu = lambda *device: driver.GPU("NVIDIA H100", (9, 0), 80 << 30, 132)
{OCTAVO}
"""
CONFIG = Path(__file__).parents[1] / "examples/configs/qwen3-0.6b"
BENCH = ("bench", "throughput", "--model", "smollm2", "--num-prompts", "1")


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first folder of a program's path."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE)
    return folder


@pytest.fixture(scope="module")
def python(hidden: Path) -> Iterator[WarmPython]:
    """It has imported an engine already, without any of these packages."""
    with warm_python(hidden) as python:
        yield python


def test_extras_are_hidden(python: WarmPython) -> None:
    from importlib.util import find_spec

    assert find_spec("torch") is not None
    done = python.run("from importlib.util import find_spec; assert find_spec('torch') is None; import torch.nn")
    assert "No module named 'torch'" in done.stderr


def test_llm_answers(python: WarmPython) -> None:
    done = python.run(GENERATE)
    assert done.returncode == 0, done.stderr


def test_run_answers(python: WarmPython) -> None:
    done = python.run(OCTAVO, "run", "smollm2", "Hi", "--max-tokens", "4", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_server_answers(hidden: Path, tmp_path: Path) -> None:
    with live(tmp_path, API, path=(hidden,)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = json.dumps({"model": "smollm2", "prompt": "Paper is", "max_tokens": 4})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 4
        connection.close()


def test_the_doctor_is_content_and_names_the_extra(python: WarmPython) -> None:
    done = python.run(OCTAVO, "doctor")
    assert done.returncode == 0, done.stderr
    assert "cpu        works" in done.stdout
    assert "the reference backend computes with torch, which is not installed: pip install 'octavo[reference]'" in (
        done.stdout
    )


def test_a_gpus_memory_is_planned_without_torch(python: WarmPython) -> None:
    done = python.run(OCTAVO, "plan", str(CONFIG), "--gpu", "h100", "-v")
    assert done.returncode == 0, done.stderr
    assert "197 tensors in bfloat16" in done.stdout


def test_a_gpu_without_torch_is_told_and_the_cpu_taken(python: WarmPython) -> None:
    missing = "torch and triton not installed: pip install 'octavo[gpu]'"
    assert missing in python.run(ON_A_GPU, "doctor").stdout
    done = python.run(ON_A_GPU, "run", "smollm2", "Hi", "--max-tokens", "1", "--backend", "triton")
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (("run", "smollm2", "Hi", "--backend", "reference"), "pip install 'octavo[reference]'"),
        ((*BENCH, "--backend", "hf"), "pip install 'octavo[bench]'"),
        (("run", "smollm2", "Hi", "--otlp-traces-endpoint", "http://localhost:4318"), "pip install 'octavo[otel]'"),
        (("bench", "serve", "--num-prompts", "1", "--plot", "x.png"), "pip install 'octavo[plot]'"),
    ],
)
def test_what_needs_an_extra_says_how_to_get_it(argv: tuple[str, ...], command: str, python: WarmPython) -> None:
    done = python.run(OCTAVO, *argv)
    assert done.returncode == 2, done.stderr
    assert command in done.stderr
    assert "Traceback" not in done.stderr


def test_quick_tests_need_no_extra(python: WarmPython) -> None:
    """`make quick` installs no extra: tests that import one are marked slow in tests/conftest.py."""
    options = ["--collect-only", "-qq", "-p", "no:schemathesis", "-m", "not slow and not server and not gpu"]
    done = python.run(f"import pytest, sys; sys.exit(pytest.main({options}))")
    assert done.returncode == 0, done.stdout[-2000:]
