"""CUDA kernels are compiled once, by any nvcc found; errors of nvcc or the disk are reported, or do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import KernelBuildError
from octavo.kernels.cuda_cpp import compile as nvcc
from octavo.kernels.cuda_cpp.compile import compile_kernel, used_variants

WORKS = """#!/bin/sh
echo called >> "$(dirname "$0")/calls"
for last; do :; done
printf 'machine code' > "$last"
"""
FAILS = """#!/bin/sh
echo "fatal error: no host compiler" >&2
exit 1
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = folder / "nvcc"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: program)
    return folder / "calls"


def test_a_kernel_is_compiled_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(WORKS, tmp_path, monkeypatch)
    for _ in range(3):
        assert compile_kernel("attention_plan", {"THREADS": 256}, (9, 0)) == b"machine code"
    assert calls.read_text().split() == ["called"]
    compile_kernel("attention_plan", {"THREADS": 1024}, (9, 0))
    compile_kernel("attention_plan", {"THREADS": 1024}, (8, 0))
    assert calls.read_text().split() == ["called"] * 3


def test_it_is_compiled_again_if_what_it_includes_has_changed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not if another header has."""
    calls, cuda = install(WORKS, tmp_path, monkeypatch), tmp_path / "cuda"
    cuda.mkdir()
    (cuda / "one.cu").write_text('#include "a.h"\n')
    (cuda / "a.h").write_text('  # include "b.cuh"\n#include <stdint.h>\n#include "missing.h"\n')
    monkeypatch.setattr(nvcc, "find_sources", lambda: tmp_path)
    for name, content, num_calls in (
        ("b.cuh", "// one", 1),
        ("other.cuh", "// one", 1),
        ("b.cuh", "// two", 2),
        ("b.cuh", "// one", 2),
    ):
        (cuda / name).write_text(content)
        compile_kernel("one", {}, (9, 0))
        assert len(calls.read_text().split()) == num_calls, name


def test_a_broken_file_is_compiled_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(WORKS, tmp_path, monkeypatch)
    compile_kernel("attention_plan", {}, (9, 0))
    (kept,) = (cache / "cuda").glob("*.cubin")
    kept.write_bytes(b"mach")
    assert compile_kernel("attention_plan", {}, (9, 0)) == b"machine code"


def test_a_refusal_says_what_the_compiler_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FAILS, tmp_path, monkeypatch)
    with pytest.raises(KernelBuildError, match=r"(?s)nvcc refused .*attention_plan\.cu.*no host compiler"):
        compile_kernel("attention_plan", {}, (9, 0))


def test_an_nvcc_that_does_not_start_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("not a program", tmp_path, monkeypatch)
    with pytest.raises(KernelBuildError, match="could not compile"):
        compile_kernel("attention_plan", {}, (9, 0))


def test_without_nvcc_the_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: None)
    with pytest.raises(KernelBuildError, match=r"pip install 'octavo\[cuda\]'"):
        compile_kernel("attention_plan", {}, (9, 0))


def test_a_cache_that_cannot_be_written_costs_time_only(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    calls = install(WORKS, tmp_path, monkeypatch)
    for _ in range(2):
        assert compile_kernel("attention_plan", {}, (9, 0)) == b"machine code"
    assert calls.read_text().split() == ["called"] * 2
    assert "compiled at every start; set OCTAVO_CACHE_DIR" in capsys.readouterr().err


def test_a_source_that_includes_a_kernel_is_remembered_while_it_is_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install(WORKS, tmp_path, monkeypatch)
    mine = tmp_path / "mine.cu"
    mine.write_text("// one\n")
    monkeypatch.chdir(tmp_path)

    def used() -> list[tuple[str, str | None, bool]]:
        variants = [one for one in used_variants((9, 0)) if one.name == "attention_plan"]
        return sorted(((one.name, one.including, one.is_built()) for one in variants), key=str)

    for _ in range(2):
        compile_kernel("attention_plan", {"THREADS": 64}, (9, 0), Path("mine.cu"))
        compile_kernel("attention_plan", {"THREADS": 256, "MORE": 1}, (9, 0))
    plain = ("attention_plan", None, True)
    assert used() == [("attention_plan", str(mine), True), plain]
    assert calls.read_text().split() == ["called"] * 2
    mine.write_text("// two\n")
    assert used() == [("attention_plan", str(mine), False), plain]
    mine.unlink()
    assert used() == [plain]
