"""Compare an op's kernels on this machine with the float32 reference, and run the op's tests.

octavo kernels test softcap                random tensors on every backend here;
                                           in a checkout, the op's tests too
octavo kernels test linear --no-pytest     only the former

Exit code 1 if a difference is larger than the op allows, or a test fails.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from octavo.cli.kernels_list import known_op
from octavo.cli.parser import CommandParser
from octavo.config import BackendConfig
from octavo.errors import BackendUnavailableError
from octavo.kernels.device import Device
from octavo.kernels.inventory import backends
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.ops import OPS
from octavo.kernels.registry import BACKENDS, HOST_BACKENDS, ONE_RANK

_TESTS = Path(__file__).parents[2] / "tests"
#: words in the names of test files that are an op's, under any name of its kernels
_FILES = {"paged_attention": ("attention",), "linear": ("linear", "matmul"), "rotary_kv_write": ("attention",)}
#: what a GPU may add to an op's error: in bfloat16 the inputs and the result are rounded
_GPU_ERRORS: dict[KVDType, float] = {"float32": 1e-4, "bfloat16": 4e-2}


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo kernels test OP [options]"
    parser.add_argument("op", metavar="OP", help="as `octavo kernels list` names it")
    parser.add_argument("--no-pytest", action="store_true", help="only compare random tensors")


def run(args: argparse.Namespace) -> int:
    name = known_op(args.op)
    if (why_not := backends()["reference"]) is not None:
        raise BackendUnavailableError(f"the comparison is with the reference backend, which cannot run here: {why_not}")
    compared = [_compare(name, device, dtype) for device, dtype in _devices()]
    is_good = all(compared)
    if args.no_pytest or not (_TESTS / "kernels").is_dir() or find_spec("pytest") is None:
        return 0 if is_good else 1
    tests = list(tests_of(name))
    print(f"\n{len(tests)} tests of {_TESTS} use {name}", flush=True)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=_TESTS.parent)
    return 0 if is_good and done.returncode == 0 else 1


def _devices() -> Iterator[tuple[Device, KVDType]]:
    """Every backend but the reference that works here, with each type that it computes in."""
    for name, why_not in backends().items():
        if name == "reference":
            continue
        if why_not is not None:
            print(f"{name}: {why_not}")
            continue
        device = BACKENDS[name](BackendConfig(), ONE_RANK)
        dtypes: tuple[KVDType, ...] = ("float32",) if name in HOST_BACKENDS else ("float32", "bfloat16")
        yield from ((device, dtype) for dtype in dtypes)


def _compare(name: str, device: Device, dtype: KVDType) -> bool:
    """Print the largest relative error of every trial -> whether all are allowed."""
    from octavo.testing.op_trials import trials

    allowed = OPS[name].error if device.name in HOST_BACKENDS else _GPU_ERRORS[dtype]
    print(f"{device.name} in {dtype}: largest relative error, allowed {allowed:g}")
    is_good = True
    for trial in trials(name):
        error = trial.error(device, dtype)
        is_good &= error <= allowed
        print(f"  {error:9.2e}  {trial.label}{'' if error <= allowed else '   TOO LARGE'}", flush=True)
    return is_good


def tests_of(op: str) -> Iterator[str]:
    """pytest's names of the tests in tests/kernels and tests/gpu that use an op, by its name or in a table of cases."""
    words = [rf"\b{op}\b", *([r"\bCase\b"] if OPS[op].is_elementwise else [])]
    for path in sorted([*_TESTS.glob("kernels/test_*.py"), *_TESTS.glob("gpu/test_*.py")]):
        shown = path.relative_to(_TESTS.parent).as_posix()
        if any(word in path.stem for word in _FILES.get(op, ())):
            yield shown
        else:
            yield from (f"{shown}::{name}" for name, text in _test_functions(path) if re.search("|".join(words), text))


@cache
def _test_functions(path: Path) -> list[tuple[str, str]]:
    """The name in pytest of each test of a file, and its text with its decorators."""
    found: list[tuple[str, str]] = []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    body: list[tuple[str, ast.stmt]] = [("", node) for node in ast.parse(text).body]
    for owner, node in body:
        if isinstance(node, ast.ClassDef):
            body += [(f"{node.name}::", one) for one in node.body]
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.append((owner + node.name, "\n".join(lines[first - 1 : node.end_lineno])))
    return found
