"""How much code there is to read: files that a request runs, lengths of files and functions, import circles.

    python benchmarks/reading.py [--model smollm2] [--names]

A file is run if a function of it is called; what runs when a module is imported does not count. The three requests run
on the CPU in this process: `LLM.generate`, one decode step of an engine, and a streamed chat through the server's app.
`--names` lists the files of each, the longest functions and files, and the circles.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import octavo

PACKAGE = Path(octavo.__file__).parent
LONG_FUNCTION = 40
IS_FUNCTION = 0x02  # CO_NEWLOCALS: set for functions and generators, not for modules and classes
OPTIONS: dict[str, Any] = {"backend": "cpu", "max_model_len": 256, "num_gpu_blocks_override": 64, "num_threads": 1}
MESSAGES = [{"role": "user", "content": "What is an octavo?"}]


# Files that run


@contextmanager
def files_run() -> Iterator[Counter[str]]:
    """Files of octavo whose functions are called in it, on any thread that `follow_threads` saw begin, with the
    number of functions."""
    called.clear()
    sys.setprofile(_note)
    files: Counter[str] = Counter()
    try:
        yield files
    finally:
        sys.setprofile(None)
        root = str(PACKAGE)
        codes = [code for code in called if code.co_filename.startswith(root) and code.co_flags & IS_FUNCTION]
        files.update(Path(code.co_filename).relative_to(PACKAGE.parent).as_posix() for code in codes)


called: set[CodeType] = set()


def _note(frame: FrameType, event: str, _: Any) -> None:
    if event == "call":
        called.add(frame.f_code)


def follow_threads() -> None:
    """Watch new threads too."""
    threading.setprofile(_note)


def files_of_generate(model: str) -> Counter[str]:
    from octavo import LLM, SamplingParams

    with LLM(model, **OPTIONS) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        llm.generate(["Warm up"], params, use_tqdm=False)  # what is imported late has been
        with files_run() as files:
            llm.generate(["Paper was invented in"], params, use_tqdm=False)
    return files


def files_of_decode_step(model: str) -> Counter[str]:
    from octavo import SamplingParams
    from octavo.engine.assemble import build_engine
    from octavo.engine.options import engine_config

    engine = build_engine(engine_config(model=model, **OPTIONS))
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    engine.add_request(engine.make_request("0", "Paper was invented in", params))
    for _ in range(4):
        engine.step()
    with files_run() as files:
        engine.step()
    engine.close()
    return files


def files_of_chat(model: str) -> Counter[str]:
    from octavo import AsyncLLM
    from octavo.server.app import create_app
    from octavo.server.settings import ServerSettings

    engine = AsyncLLM(model, **OPTIONS)
    app = create_app(engine, ServerSettings(served_model_name=("model",)))
    body = {"model": "model", "messages": MESSAGES, "stream": True, "max_tokens": 8, "temperature": 0}

    async def twice() -> Counter[str]:
        await stream_chat(app, body)
        with files_run() as files:
            await stream_chat(app, body)
        return files

    try:
        return asyncio.run(twice())
    finally:
        engine.shutdown()


async def stream_chat(app: Any, body: dict[str, Any]) -> None:
    """POST to an ASGI application and read the whole stream. The server's own `post_json` would count as a file run."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}, "root_path": ""}
    asked = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])
    answer = b""

    async def receive() -> Any:
        if (message := next(asked, None)) is None:
            await asyncio.Event().wait()  # the client stays
        return message

    async def send(message: Any) -> None:
        nonlocal answer
        answer += message.get("body", b"")

    await app(scope | {"client": ("localhost", 1), "server": ("localhost", 80)}, receive, send)
    assert answer.endswith(b"data: [DONE]\n\n"), answer.decode()


# Lengths


def sources(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """Every file of a package by its dotted name, parsed."""
    parsed = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parsed[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return parsed


def file_lengths(package: Path = PACKAGE) -> list[tuple[int, str]]:
    """(lines, file), the longest first; without empty files."""
    paths = [path for path in package.rglob("*.py") if path.stat().st_size > 0]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    return sorted(
        zip(lines, (path.relative_to(package.parent).as_posix() for path in paths), strict=True), reverse=True
    )


def function_lengths(modules: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """(lines from def to the end, name), the longest first."""
    return sorted(
        (
            (node.end_lineno - node.lineno + 1, f"{module}:{node.lineno} {node.name}")
            for module, tree in modules.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        ),
        reverse=True,
    )


def percentile(values: Iterable[int], percent: int) -> int:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


# Circles


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each module imports: at its head, inside functions, or for types."""
    return {name: set(_imported(tree, modules)) - {name} for name, tree in modules.items()}


def _imported(tree: ast.Module, modules: Iterable[str]) -> Iterator[str]:
    """`from a import b` is module a.b if there is one, else module a."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found = whole if whole in modules else node.module
                if found in modules:
                    yield found


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All of a module, at any depth, with handlers and cases; no expressions, which are most of a tree."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from (inner := getattr(node, part, ()))
            left += inner


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
            if other in path:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            at = path.index(module)
            if len(path) - at > 1:
                found.append(sorted(path[at:]))
            del path[at:]

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


# The report


def show(what: str, number: int, target: int, names: Iterable[str], with_names: bool) -> None:
    print(f"{what:<42} {number:>7,}   target {target:,}")
    if with_names:
        print("".join(f"    {name}\n" for name in names), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--names", action="store_true", help="list the files and functions")
    options = parser.parse_args()
    names = options.names
    follow_threads()
    generate, step, chat = (
        measure(options.model) for measure in (files_of_generate, files_of_decode_step, files_of_chat)
    )
    show("files run by LLM.generate", len(generate), 28, sorted(generate), names)
    show("files run by a decode step", len(step), 15, sorted(step), names)
    show("files run by a streamed chat", len(chat), 40, sorted(chat), names)
    modules, files = sources(), file_lengths()
    functions = function_lengths(modules)
    long = [f"{lines} {name}" for lines, name in functions if lines > LONG_FUNCTION]
    show("lines of a function, p95", percentile((lines for lines, _ in functions), 95), 25, long, names)
    longest = [f"{lines} {name}" for lines, name in files[: len(files) // 10]]
    show("lines of a file, p90", percentile((lines for lines, _ in files), 90), 230, longest, names)
    found = circles(imports(modules))
    show("import circles", len(found), 0, map(", ".join, found), names)
    show("lines", sum(lines for lines, _ in files), 38_885, (), names)


if __name__ == "__main__":
    main()
