"""Building, caching and refusing, with a small source tree, so that a build takes a second."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from octavo import env
from octavo.errors import BackendUnavailableError, ConfigError, KernelBuildError
from octavo.kernels.build import build, kept_files
from octavo.kernels.build.toolchain import Compilers, Toolchain, find_toolchain
from octavo.kernels.cpu.device import CpuDevice

HEADER = "#pragma once\ninline int answer() { return 42; }\n"
ANSWER = '#include "answer.h"\nextern "C" int octavo_answer() { return answer(); }\n'
OTHER = 'extern "C" int octavo_other() { return 7; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of two files instead of ours, and a separate cache."""
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
    return {path.name for path in (tmp_path / "cache" / "kernels" / "objects").glob("*.o")}


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
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("the compiler was run"))
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
    toolchain = find_toolchain("native", None)
    key = build.cache_key(sources, toolchain, "native")
    upgraded = Toolchain(toolchain.command, toolchain.identity + " newer", toolchain.flags)
    assert build.cache_key(sources, upgraded, "native") != key
    generic = build.cache_key(sources, toolchain, "generic")
    monkeypatch.setattr(build, "cpu_identity", lambda: "another processor")
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
    reason = CpuDevice().why_not()
    assert reason is not None
    assert "CXX is 'no-such-compiler -O1'" in reason
    monkeypatch.setenv("CXX", "false")
    reason = CpuDevice().why_not()
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
        "from pathlib import Path; from octavo.kernels.build import build; "
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


# ---------------------------------------------------------------------------------------------- broken caches


def build_elsewhere(sources: Path) -> None:
    """In a separate process: a loaded library stays loaded, and mapping a truncated one is SIGBUS."""
    script = (
        "from pathlib import Path; from octavo.kernels.build import build; "
        f"build.find_sources = lambda: Path({str(sources)!r}); assert build.load().octavo_answer() == 42"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", None], ids=["empty", "truncated", "cut in half"])
def test_a_broken_library_is_built_again(sources: Path, tmp_path: Path, content: bytes | None) -> None:
    build_elsewhere(sources)
    (library,) = libraries(tmp_path)
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2] if content is None else content)
    build_elsewhere(sources)


def test_a_broken_object_is_compiled_again(sources: Path, tmp_path: Path) -> None:
    build.load()
    for path in (tmp_path / "cache" / "kernels" / "objects").glob("answer-*.o"):
        path.write_bytes(b"")
    shutil.rmtree(libraries(tmp_path)[0].parent)
    assert load_again().octavo_answer() == 42


def test_a_library_without_its_seal_is_built_again(sources: Path, tmp_path: Path) -> None:
    build.load()
    libraries(tmp_path)[0].with_name(f"{build.LIBRARY_NAME}.sha256").unlink()
    assert load_again().octavo_answer() == 42
    assert kept_files.is_whole(libraries(tmp_path)[0])


def test_a_library_that_cannot_be_loaded_is_our_error(sources: Path, tmp_path: Path) -> None:
    build_elsewhere(sources)
    (library,) = libraries(tmp_path)
    library.write_bytes(b"no library")  # whole, by its seal
    kept_files.seal(library)
    with pytest.raises(KernelBuildError, match=r"cannot be loaded: .* set OCTAVO_CACHE_DIR"):
        load_again()


def test_what_killed_builds_left_is_removed(sources: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "cache" / "kernels"
    old, young = kernels / "building-old", kernels / "building-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "answer.o").write_bytes(b"half")
    long_ago = time.time() - 5000
    os.utime(old, (long_ago, long_ago))
    build.load()
    assert not old.exists()
    assert young.exists(), "another process may be building there"


@pytest.fixture
def full_disk(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that finds no space in the cache folder, and a temporary folder for the test."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *{tmp_path / "cache"}*)\n'
        'echo "fatal error: No space left on device" >&2; exit 1;; esac\n'
        'exec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_where_the_cache_is_full_the_temporary_folder_serves(
    full_disk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.load().octavo_answer() == 42
    said = capfd.readouterr().err
    assert "cannot be kept in" in said
    assert "No space left on device" in said
    assert "set OCTAVO_CACHE_DIR" in said
    assert load_again().octavo_answer() == 42
    assert "cannot be kept" not in capfd.readouterr().err, "it is told when it is built, not at every start"


def test_a_temporary_folder_of_somebody_else_is_not_used(full_disk: Path) -> None:
    (full_disk / f"octavo-{os.getuid()}").mkdir(mode=0o777)
    (full_disk / f"octavo-{os.getuid()}").chmod(0o777)
    with pytest.raises(KernelBuildError, match="only this user can write"):
        build.load()


def test_a_home_that_cannot_be_written_leads_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OCTAVO_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert env.cache_dir() == tmp_path / f"octavo-{os.getuid()}"


def test_a_cache_that_can_only_be_read_is_read(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    assert load_again().octavo_answer() == 42


def test_nobody_waits_for_what_an_ended_compiler_started(tmp_path: Path) -> None:
    """g++ starts a child for each stage of its work, and the child holds the pipes when g++ is killed."""
    compilers = Compilers()
    command = ["sh", "-c", 'touch "$0"; sleep 30; true', str(tmp_path / "begun")]
    refusals: list[KernelBuildError] = []

    def build_one() -> None:
        try:
            compilers.run(command, str(tmp_path))
        except KernelBuildError as error:
            refusals.append(error)

    thread = threading.Thread(target=build_one)
    thread.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    time.sleep(0.1)  # the shell sleeps by now
    compilers.end()
    thread.join(20)
    assert not thread.is_alive()
    assert "ended" in str(refusals[0])
