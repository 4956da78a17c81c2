"""What tests compile is compiled again when its command or any included file has changed, and only then."""

from pathlib import Path

import pytest

from tests.kernels.kept_library import kept_library, with_includes


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "a.cpp").write_text('#include "b.cuh"\n  # include "stand.cuh"\n#include <vector>\n')
    (tmp_path / "b.cuh").write_text('#include "c.cuh"')
    for name in ("c.cuh", "stand.cuh", "stand_in/stand.cuh", "other.cuh"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_stand_in_is_found_first_and_nothing_else_is_needed(sources: Path) -> None:
    found = with_includes(["a.cpp"], [sources / "stand_in", sources])
    assert found == {name: sources / name for name in ("a.cpp", "b.cuh", "c.cuh")} | {
        "stand.cuh": sources / "stand_in" / "stand.cuh"
    }
    (sources / "c.cuh").write_text('#include "nowhere.cuh"')
    with pytest.raises(AssertionError, match=r"nowhere\.cuh is in none of"):
        with_includes(["a.cpp"], [sources])


def test_it_is_compiled_when_something_has_changed(sources: Path) -> None:
    num_compiled = 0

    def compile_to(library: Path) -> None:
        nonlocal num_compiled
        num_compiled += 1
        library.write_text(f"compiled {num_compiled}")

    def text(*words: str) -> str:
        return kept_library(words, with_includes(["a.cpp"], [sources]), compile_to).read_text()

    assert [text("-O1"), text("-O1"), text("-O2"), text("-O1")] == [
        "compiled 1",
        "compiled 1",
        "compiled 2",
        "compiled 1",
    ]
    (sources / "other.cuh").write_text("// nobody includes it")
    assert text("-O1") == "compiled 1"
    (sources / "c.cuh").write_text("// changed")
    assert text("-O1") == "compiled 3"
    (broken,) = (path for path in (sources / "cache/tests").glob("*.so") if path.read_text() == "compiled 3")
    broken.write_text("")
    assert text("-O1") == "compiled 4"
