"""What may not be imported at start-up, which is to be fast: torch alone would take most of the time."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "rich", "tokenizers", "huggingface_hub")
IMPORT_BUDGET_S = 0.2

MEASURE_IMPORT = """
import json, sys, time
start = time.perf_counter()
import octavo
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""

GENERATE_ON_CPU = """
import sys
from octavo import LLM, SamplingParams
llm = LLM("smollm2", backend="cpu", max_model_len=256)
params = SamplingParams(max_tokens=4, temperature=0)
assert len(llm.generate(["Paper is"], params, use_tqdm=False)[0].outputs[0].token_ids) == 4
llm.close()
print(" ".join(name for name in ("torch", "transformers", "gguf", "scipy") if name in sys.modules))
"""


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_octavo_is_instant_and_light() -> None:
    times = []
    for _ in range(5):
        seconds, modules = json.loads(run_python(MEASURE_IMPORT))
        times.append(seconds)
        heavy = [name for name in HEAVY if name in modules]
        assert not heavy, f"import octavo loads {heavy}"
    assert min(times) < IMPORT_BUDGET_S, f"import octavo took {min(times):.3f} s at best of {len(times)}"


def test_the_cpu_engine_never_imports_torch() -> None:
    loaded = run_python(GENERATE_ON_CPU).split()
    assert not loaded, f"generating on the cpu backend loads {loaded}"


def test_the_command_line_shows_its_help_without_the_engine() -> None:
    code = "import sys; from octavo.cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {*HEAVY, "octavo.llm", "octavo.engine"}


@pytest.mark.parametrize(
    ("process", "spared"),
    [
        ("octavo.cli.serve", (*HEAVY, "asyncio", "zmq", "octavo.engine.core", "octavo.worker", "octavo.text")),
        (
            "octavo.server.front_end",
            ("torch", "octavo.engine.core", "octavo.worker"),
        ),
    ],
)
def test_a_servers_parent_and_its_front_ends_import_no_engine(process: str, spared: tuple[str, ...]) -> None:
    imported = set(run_python(f"import sys, {process}; print(*sys.modules)").split())
    assert process in imported
    assert not imported & set(spared)
