"""No two files import each other, not even lazily or for types: each can be read and changed alone."""

import ast
import gc

from benchmarks.reading import circles, imports, sources


def test_no_files_import_each_other() -> None:
    gc.disable()  # trees are millions of objects, and none is garbage
    try:
        found = circles(imports(sources()))
    finally:
        gc.enable()
    assert not found, "files that import each other: " + "; ".join(map(", ".join, found))


def test_circles_of_any_kind_of_import_are_found() -> None:
    code = {
        "octavo": "",
        "octavo.late": "def f():\n    from octavo import typed",
        "octavo.typed": "if TYPE_CHECKING:\n    from octavo.late import f",
        "octavo.leaf": "import octavo.late",
        "octavo.first": "from octavo.second import x",
        "octavo.second": "from octavo.third import x",
        "octavo.third": "import octavo.first",
    }
    graph = imports({name: ast.parse(text) for name, text in code.items()})
    assert circles(graph) == [["octavo.first", "octavo.second", "octavo.third"], ["octavo.late", "octavo.typed"]]
