"""`octavo kernels`: every kernel has its place, only what changed is compiled, and an op's tests are found."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.cli import kernels_test
from octavo.cli.main import main
from octavo.kernels import attention, inventory
from octavo.kernels.build import build
from octavo.kernels.cuda_cpp import compile as nvcc
from octavo.kernels.ops import OPS
from octavo.kernels.reference.ops import PLAIN
from octavo.kernels.registry import BACKENDS
from octavo.testing import op_bench

ROOT = Path(__file__).parents[2]


def shown(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(["kernels", *argv]) == code
    return capsys.readouterr().out


def test_every_op_has_a_kernel_of_each_backend(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "list", "--json"))
    assert list(found["ops"]) == list(OPS)
    for op, kernels in found["ops"].items():
        assert [kernel["name"] for kernel in kernels] == list(BACKENDS)
        assert sum(kernel["runs"] for kernel in kernels) == 1
        for kernel in kernels:
            file, line = kernel["where"].split(":")
            assert op in (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
            assert kernel["why_not"] == found["backends"][kernel["name"]]
    assert list(found["block_moves"]) == ["gather_blocks", "scatter_blocks"]
    for move, kernels in found["block_moves"].items():
        triton, cpu, _ = kernels
        file, line = triton["where"].split(":")
        assert f"def {move}(" in (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert cpu["where"].startswith("octavo/kernels/block_mover.py:")
    for kernel, name in zip(found["attention"], attention.BACKENDS, strict=True):
        assert kernel["name"] == name
        assert (ROOT / kernel["where"]).is_file()


def test_the_list_says_what_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "backends", lambda: {"triton": "no GPU", "cpu": None, "reference": None})
    out = shown(capsys, "list", "softcap")
    lines = {line.split()[0]: " ".join(line.split()[1:3]) for line in out.split("softcap", 1)[1].splitlines()[1:]}
    assert lines["triton"].startswith("not here")
    assert lines["cpu"].startswith("runs csrc/cpu/elementwise.cpp")
    assert lines["reference"].startswith("works octavo/kernels/reference/ops.py")
    assert "attention" not in out


@pytest.mark.parametrize("move", ["gather_blocks", "scatter_blocks"])
def test_moves_of_blocks_are_listed_and_measured(
    capsys: pytest.CaptureFixture[str], move: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_bench, "limits_of", lambda backend: op_bench.Limits(1e10, 1e11))
    monkeypatch.setitem(op_bench._MOVES, "cpu", ((4096, 8),))
    assert move in shown(capsys, "list", move)
    assert "8 blocks of 4 KiB" in shown(capsys, "bench", move, "--backend", "cpu")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["list", "softca"], "there is no op 'softca'; did you mean 'softcap'?"),
        (["list", "--num-heads", "3", "--num-kv-heads", "2"], "give a divisor"),
        (["list", "--head-dim", "0"], "--head-dim is 0, allowed is 1 or more"),
        (["build", "--capability", "hopper"], "--capability is 'hopper', allowed is"),
        (["build", "--capability", "7.5"], "allowed is 8.0 or more"),
        (["test", "gelu"], "there is no op 'gelu'"),
        (["bench", "linear", "--backend", "reference"], "invalid choice: 'reference'"),
        (["lst"], "did you mean 'kernels list'?"),
    ],
)
def test_refusals(argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *argv]) == 2
    assert problem in capsys.readouterr().err


def test_the_group_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys)
    assert "kernels build" in out
    assert "bench serve" not in out


def test_random_calls_are_compared_and_the_ops_tests_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[str]] = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda argv, **how: runs.append(argv) or SimpleNamespace(returncode=len(runs) - 1),
    )
    out = shown(capsys, "test", "softcap")
    assert "cpu in float32: largest relative error, allowed 2e-06" in out
    assert "30.0, 1024 columns" in out
    assert "tests/kernels/test_token_ops.py::test_elementwise_ops" in runs[0]
    assert "tests/gpu/test_elementwise.py::TestRows::test_elementwise_ops" in runs[0]
    shown(capsys, "test", "softcap", code=1)  # a test has failed
    shown(capsys, "test", "softcap", "--no-pytest")
    assert len(runs) == 2


def test_a_kernel_that_is_wrong_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_test, "_TESTS", Path("/nowhere"))  # as in a wheel
    monkeypatch.setitem(PLAIN, "softcap", lambda x, cap: x)
    assert "TOO LARGE" in shown(capsys, "test", "softcap", code=1)


def test_every_op_has_tests() -> None:
    for op in OPS:
        assert list(kernels_test.tests_of(op)), f"nothing in tests/kernels or tests/gpu uses {op}"


FAKE_NVCC = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
while [ "$1" != -o ]; do shift; done
echo cubin > "$2"
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two C++ files and two CUDA files instead of ours, a fake compiler, and a separate cache."""
    root = tmp_path / "csrc"
    for name, text in {
        "cpu/one.cpp": 'extern "C" int octavo_one() { return 1; }\n',
        "bindings/two.cpp": 'extern "C" int octavo_two() { return 2; }\n',
        "cuda/first.cu": "// first\n",
        "cuda/second.cu": "// second\n",
        "cuda/both.cuh": "// both\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    compiler = tmp_path / "nvcc"
    compiler.write_text(FAKE_NVCC)
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(build, "find_sources", lambda: root)
    monkeypatch.setattr(nvcc, "find_sources", lambda: root)
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: compiler)
    monkeypatch.setattr("octavo.cli.kernels_build.find_nvcc", lambda: compiler)
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))
    return root


def compiled(out: str) -> list[str]:
    """The files named in a build's progress lines."""
    return sorted(line.split(" s  ", 1)[1] for line in out.splitlines() if line.startswith("  ["))


def test_only_what_changed_is_compiled(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("build", "--capability", "9.0")
    stale = shown(capsys, *call, "--dry-run")
    assert all(name in stale for name in ("one.cpp", "two.cpp", "first.cu", "second.cu"))
    library = "octavo_kernels.so, linked"
    everything = ["csrc/bindings/two.cpp", "csrc/cpu/one.cpp", "csrc/cuda/first.cu", "csrc/cuda/second.cu", library]
    assert compiled(shown(capsys, *call)) == everything
    assert shown(capsys, *call) == "C++ for the CPU: up to date\nCUDA C++ for capability 9.0: up to date\n"
    (sources / "cuda" / "first.cu").write_text('#include "both.cuh"\n')
    assert compiled(shown(capsys, *call)) == ["csrc/cuda/first.cu"]
    (sources / "cuda" / "both.cuh").write_text("// changed\n")
    assert compiled(shown(capsys, *call)) == ["csrc/cuda/first.cu"], "the other one does not include it"
    (sources / "cpu" / "one.cpp").write_text('extern "C" int octavo_one() { return 3; }\n')
    assert compiled(shown(capsys, *call)) == ["csrc/cpu/one.cpp", library]
    assert compiled(shown(capsys, "build", "--capability", "8.0")) == ["csrc/cuda/first.cu", "csrc/cuda/second.cu"]


def test_what_the_machine_has_used_is_built_again(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dim in (64, 128):
        nvcc.compile_kernel("first", {"DIM": dim}, (9, 0))
    nvcc.compile_kernel("first", {"DIM": 96}, (8, 0))
    (sources / "cuda" / "first.cu").write_text("// changed\n")
    out = compiled(shown(capsys, "build", "--capability", "9.0"))
    assert out[2:4] == ["csrc/cuda/first.cu  DIM=128", "csrc/cuda/first.cu  DIM=64"]
    # The kernel's parameters have new names
    nvcc.compile_kernel("first", {"DIM": 64, "HAS_CAP": 0}, (9, 0))
    (sources / "cuda" / "first.cu").write_text("// changed again\n")
    assert compiled(shown(capsys, "build", "--capability", "9.0")) == ["csrc/cuda/first.cu  DIM=64 HAS_CAP=0"]


def test_a_kernel_that_does_not_compile(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sources.parent / "nvcc").write_text("#!/bin/sh\necho 'first.cu(1): error' >&2\nexit 1\n")
    assert main(["kernels", "build", "--capability", "9.0"]) == 2
    assert "first.cu(1): error" in capsys.readouterr().err


def test_without_a_gpu_or_nvcc(
    sources: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.cli.kernels_build.find_gpu", lambda index: None)
    assert "--capability 9.0 compiles for one elsewhere" in shown(capsys, "build", "--dry-run")
    monkeypatch.setattr("octavo.cli.kernels_build.find_nvcc", lambda: None)
    assert "pip install 'octavo[cuda]'" in shown(capsys, "build", "--dry-run", "--capability", "9.0")
