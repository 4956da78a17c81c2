"""Building, caching and refusing: with a small library of sources, so that a build takes a second."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import env
from octavo.errors import BackendUnavailableError, ConfigError, KernelBuildError
from octavo.kernels import build
from octavo.kernels.cpu.backend import CpuBackend

HEADER = "#pragma once\ninline int answer() { return 42; }\n"
ANSWER = '#include "answer.h"\nextern "C" int octavo_answer() { return answer(); }\n'
OTHER = 'extern "C" int octavo_other() { return 7; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of two files, found instead of ours; a cache of its own."""
    root = tmp_path / "csrc"
    (root / "cpu").mkdir(parents=True)
    (root / "bindings").mkdir()
    (root / "cpu" / "answer.h").write_text(HEADER)
    (root / "cpu" / "answer.cpp").write_text(ANSWER)
    (root / "bindings" / "other.cpp").write_text(OTHER)
    monkeypatch.setattr(build, "find_sources", lambda: root)
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))
    build._load.cache_clear()
    yield root
    build._load.cache_clear()


def libraries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").glob(f"*/{build.LIBRARY_NAME}"))


def objects(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "kernels" / "objects").iterdir()}


def load_again() -> ctypes.CDLL:
    build._load.cache_clear()
    return build.load()


def test_builds_once_and_says_so(sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build.load().octavo_answer() == 42
    assert "building CPU kernels" in capfd.readouterr().err
    assert load_again().octavo_other() == 7
    assert capfd.readouterr().err == ""
    assert len(libraries(tmp_path)) == 1


def test_a_cached_library_needs_no_run_of_the_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the compiler was run"))
    assert load_again().octavo_answer() == 42


def test_a_changed_header_rebuilds_only_what_includes_it(sources: Path, tmp_path: Path) -> None:
    build.load()
    before = objects(tmp_path)
    (sources / "cpu" / "answer.h").write_text(HEADER.replace("42", "43"))
    assert load_again().octavo_answer() == 43
    new = objects(tmp_path) - before
    assert [name.split("-")[0] for name in new] == ["answer"]
    assert len(libraries(tmp_path)) == 2


def test_isa_is_part_of_the_key(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load()
    monkeypatch.setenv("OCTAVO_CPU_ISA", "generic")
    load_again()
    assert len(libraries(tmp_path)) == 2


def test_another_processor_or_compiler_is_another_key(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain = build.find_toolchain("native", None)
    key = build.cache_key(sources, toolchain, "native")
    upgraded = build.Toolchain(toolchain.command, toolchain.identity + " newer", toolchain.flags)
    assert build.cache_key(sources, upgraded, "native") != key
    generic = build.cache_key(sources, toolchain, "generic")
    monkeypatch.setattr(build, "_cpu_identity", lambda: "another processor")
    assert build.cache_key(sources, toolchain, "native") != key
    assert build.cache_key(sources, toolchain, "generic") == generic


def test_a_broken_source_names_the_command_and_the_error(sources: Path) -> None:
    (sources / "bindings" / "other.cpp").write_text("int octavo_other( { return 7; }\n")
    with pytest.raises(KernelBuildError, match=r"(?s)refused the CPU kernels.*-c .*other\.cpp.*error:"):
        build.load()
    (sources / "bindings" / "other.cpp").write_text(OTHER)
    assert load_again().octavo_other() == 7


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"no C\+\+ compiler: .* install g\+\+ 11"):
        build.load()


def test_a_compiler_that_is_not_there_or_does_not_work(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    reason = CpuBackend().why_not()
    assert reason is not None
    assert "CXX is 'no-such-compiler -O1'" in reason
    monkeypatch.setenv("CXX", "false")
    reason = CpuBackend().why_not()
    assert reason is not None
    assert "refused the CPU kernels" in reason


def test_an_unknown_isa_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CPU_ISA", "avx9000")
    with pytest.raises(ConfigError, match="OCTAVO_CPU_ISA is 'avx9000', allowed are native, avx2 and generic"):
        env.cpu_isa()


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="set OCTAVO_CACHE_DIR"):
        env.cache_dir()


def test_processes_that_build_at_once_share_one_build(sources: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from octavo.kernels import build; "
        f"build.find_sources = lambda: Path({str(sources)!r}); assert build.load().octavo_answer() == 42"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert sum("building" in error for error in errors) == 1
    assert len(libraries(tmp_path)) == 1


def test_loading_touches_no_torch() -> None:
    script = "import sys; from octavo.kernels import registry; registry.describe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
