"""Write a new element-wise op into this checkout: it compiles and passes its tests.

octavo kernels new scaled "x * scale"
octavo kernels new mix "x * weight + y * (1 - weight)"

x, and y if there are two inputs, are tensors; up to two other names are numbers. Where a formula needs more than
+ - * / and numerals, begin with a simpler one and edit the lines that this command prints.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.cli.parser import CommandParser
from octavo.errors import ConfigError
from octavo.kernels.ops import OPS, Ops

_ROOT = Path(__file__).parents[2]
_TENSORS = ("x", "y")
_MAX_NUMBERS = 2  # the Triton kernel's `first` and `second`
_MAX_LEN = 50  # so that every line that is written fits
_LARGEST = 1e30  # numeral: a float32 holds it
_TAKEN = ("self", "over")  # names that the declaration uses
_OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
#: of the numbers in the op's test
_TRIED = (0.7, 3.0)


@dataclass(frozen=True, slots=True)
class NewOp:
    """An op as its formula says. tensors, numbers: their names, in order."""

    name: str
    formula: ast.expr
    tensors: tuple[str, ...]
    numbers: tuple[str, ...]

    @property
    def parameters(self) -> str:
        return ", ".join((*self.tensors, *self.numbers))

    def text(self, names: Mapping[str, str] | None = None, numeral: Callable[[float], str] = repr) -> str:
        """The formula with other names for its numbers, and numerals as a language writes them."""
        return ast.unparse(_Renamed(names or {}, numeral).visit(ast.parse(ast.unparse(self.formula), mode="eval").body))


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str], numeral: Callable[[float], str]) -> None:
        self._names, self._numeral = names, numeral

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._names.get(node.id, node.id))

    def visit_Constant(self, node: ast.Constant) -> ast.Name:
        assert isinstance(node.value, (int, float)), "formulas have no other constants"
        return ast.Name(self._numeral(node.value))


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo kernels new OP FORMULA [options]"
    parser.add_argument("op", metavar="OP", help="the new op's name")
    parser.add_argument("formula", metavar="FORMULA", help="of x, y and numbers, such as 'x * scale'")
    parser.add_argument("--dry-run", action="store_true", help="print the lines and write nothing")


def run(args: argparse.Namespace) -> int:
    if not (_ROOT / "tests" / "kernels").is_dir():
        raise ConfigError(f"a new op goes into the sources, and {_ROOT} is no checkout: git clone the project")
    new = _new_op(args.op, args.formula)
    written = {path: _inserted(path, find, write(new)) for path, find, write in _PLACES}
    for path, (text, first, lines) in written.items():
        print(f"{path}:{first}\n{lines.rstrip()}\n")
        if not args.dry_run:
            (_ROOT / path).write_text(text, encoding="utf-8")
    if not args.dry_run:
        print(f"Now: octavo kernels test {new.name}; octavo kernels bench {new.name}")
    return 0


def _new_op(name: str, formula: str) -> NewOp:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,29}", name) or keyword.iskeyword(name):
        raise ConfigError(f"the op's name is {name!r}, allowed are up to 30 small letters, digits and underscores")
    fused = (_ROOT / "octavo/kernels/cuda/program.py").read_text(encoding="utf-8")
    if name in OPS or hasattr(Ops, name) or f"def _{name}(" in fused:
        raise ConfigError(f"there is an op {name!r} already: choose another name")
    tree = _parsed(formula)
    found = sorted((node for node in ast.walk(tree) if isinstance(node, ast.Name)), key=lambda node: node.col_offset)
    names = dict.fromkeys(node.id for node in found)
    numbers = tuple(one for one in names if one not in _TENSORS)
    if "x" not in names:
        raise ConfigError(f"the formula is {formula!r}, and its tensors are x, or x and y: use x in it")
    if len(numbers) > _MAX_NUMBERS:
        raise ConfigError(f"the formula is {formula!r}, with the numbers {', '.join(numbers)}; allowed are two at most")
    for one in numbers:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,11}", one) or one in _TAKEN:
            raise ConfigError(f"a number is called {one!r}, allowed are up to 12 small letters, digits and underscores")
    return NewOp(name, tree, tuple(one for one in _TENSORS if one in names), numbers)


def _parsed(formula: str) -> ast.expr:
    if len(formula) > _MAX_LEN:
        raise ConfigError(
            f"the formula has {len(formula)} characters, allowed are {_MAX_LEN}: begin with a simpler one"
        )
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
        is_good = "\n" not in formula and all(map(_is_allowed, ast.walk(tree))) and "--" not in ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        is_good = False
    if not is_good:
        raise ConfigError(f"the formula is {formula!r}, allowed are names, numerals, + - * / and parentheses")
    return tree


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float) and abs(node.value) < _LARGEST  # type: ignore[arg-type]
    return isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.USub, *_OPERATIONS))


# Where an op is written down, and how


def _contract(new: NewOp) -> str:
    declared = [f"{one}: Consumed" for one in new.tensors] + [f"{one}: float" for one in new.numbers]
    check = f'        assert x.width == y.width, f"{new.name} of widths {{x.width}} and {{y.width}}"\n'
    return f'''
    @op(error=5e-6, elementwise=True)
    def {new.name}(self, {", ".join(declared)}) -> Tensor:
        """{new.text()}."""
{check if "y" in new.tensors else ""}        return over(x)
'''


def _reference(new: NewOp) -> str:
    return f'    "{new.name}": lambda {new.parameters}: {new.text()},\n'


def _cpu(new: NewOp) -> str:
    names = {one: f"given[{i}].real" for i, one in enumerate(new.numbers)}
    given = "Given given" if new.numbers else "Given"
    taken = ", ".join(["auto", given, *(f"auto {one}" for one in new.tensors)])
    return f"""    {{"{new.name}", elementwise<1>([]({taken}) {{
       return {new.text(names, _float)};
     }})}},
"""


def _float(value: float) -> str:
    return f"{float(value)!r}f"


def _triton(new: NewOp) -> str:
    names = dict(zip(new.numbers, ("first", "second"), strict=False))
    return f'    elif OP == "{new.name}":\n        return {new.text(names)}\n'


def _case(new: NewOp) -> str:
    tried = dict(zip(new.numbers, _TRIED, strict=False))
    arguments = "{" + ", ".join(f'"{one}": {value}' for one, value in tried.items()) + "}"
    exact = new.text({one: str(value) for one, value in tried.items()})
    return f'    Case("{new.name}", {arguments}, lambda {", ".join(new.tensors)}: {exact}),\n'


def _end_of_class(text: str) -> int:
    """After the last method of `Ops`, as a line."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Ops"]
    return found[0].end_lineno or 0


def _end_of(opening: str, closing: str) -> Callable[[str], int]:
    """Before the line that closes a table."""

    def find(text: str) -> int:
        lines = text.splitlines()
        first = next(i for i, line in enumerate(lines) if re.match(opening, line))
        return next(i for i in range(first, len(lines)) if lines[i] == closing)

    return find


#: file -> after which line, and what
_PLACES: tuple[tuple[str, Callable[[str], int], Callable[[NewOp], str]], ...] = (
    ("octavo/kernels/ops.py", _end_of_class, _contract),
    ("octavo/kernels/reference/ops.py", _end_of(r"PLAIN\b", "}"), _reference),
    ("csrc/cpu/elementwise.cpp", _end_of(r"constexpr NamedKernel kKernels\[\]", "};"), _cpu),
    ("octavo/kernels/triton/elementwise/elementwise.py", _end_of(r"def _result\(", "    else:"), _triton),
    ("tests/kernels/elementwise_cases.py", _end_of("CASES =", "]"), _case),
)


def _inserted(path: str, find: Callable[[str], int], new: str) -> tuple[str, int, str]:
    """The file's text with the new lines; the number of the first that is not empty; and the lines."""
    text = (_ROOT / path).read_text(encoding="utf-8")
    line, lines = find(text), text.splitlines(keepends=True)
    return "".join([*lines[:line], new, *lines[line:]]), line + 1 + new.startswith("\n"), new.lstrip("\n")
