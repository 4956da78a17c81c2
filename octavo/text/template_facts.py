"""How a chat template reads a message's fields, found in its syntax tree.

Templates differ. Some iterate over a message's content parts, most expect one text; some test whether it is None; few
know the role `developer`; some expect a tool call's arguments as an object, others as text. chat_messages.py converts a
conversation to the form that its template expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from jinja2 import nodes

#: filters that keep the kind of their input
_SAME = frozenset({"default", "d", "list", "reverse", "selectattr", "rejectattr", "trim", "safe", "string"})
_OF_PARTS = frozenset({"map", "selectattr", "rejectattr", "groupby"})
_OF_TEXT = frozenset({"trim", "safe", "string", "e", "escape", "indent", "default", "d", "length", "count"})


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """reads_parts: iterates over content parts. asks_for_text: tests whether content is a string.
    asks_for_none: tests whether content is None. knows_developer: names that role.
    wants_argument_text: prints a tool call's arguments unchanged, so they must be text."""

    reads_parts: bool
    asks_for_text: bool
    asks_for_none: bool
    knows_developer: bool
    wants_argument_text: bool


def template_facts(tree: nodes.Template) -> TemplateFacts:
    content, arguments = _Field(tree, "content"), _Field(tree, "arguments")
    return TemplateFacts(
        reads_parts=content.is_gone_through(tree),
        asks_for_text=content.is_tested(tree, "string"),
        asks_for_none=content.is_tested(tree, "none") or content.is_compared_with_none(tree),
        knows_developer=any(constant.value == "developer" for constant in tree.find_all(nodes.Const)),
        wants_argument_text=arguments.is_read(tree) and not arguments.is_taken_apart(tree),
    )


class _Field:
    """One field of a message, and every variable that holds it."""

    def __init__(self, tree: nodes.Template, name: str) -> None:
        self._name = name
        self._variables: set[str] = set()
        macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        handed_on = [*_assigned(tree), *_passed(tree, macros)]
        num_known = -1
        while num_known != len(self._variables):
            num_known = len(self._variables)
            self._variables |= {name for name, value in handed_on if self.holds(value)}

    def holds(self, node: nodes.Node | None) -> bool:
        """Whether the expression is the field's value."""
        if isinstance(node, nodes.Name):
            return node.name in self._variables
        if isinstance(node, nodes.NSRef):
            return f"{node.name}.{node.attr}" in self._variables
        if isinstance(node, nodes.Getattr):
            return node.attr == self._name or f"{getattr(node.node, 'name', '')}.{node.attr}" in self._variables
        if isinstance(node, nodes.Getitem):
            is_slice = isinstance(node.arg, nodes.Slice) and self.holds(node.node)
            return is_slice or (isinstance(node.arg, nodes.Const) and node.arg.value == self._name)
        if isinstance(node, nodes.Filter):
            return node.name in _SAME and self.holds(node.node)
        if isinstance(node, nodes.CondExpr):
            return self.holds(node.expr1) or self.holds(node.expr2)
        if isinstance(node, (nodes.Or, nodes.And)):
            return self.holds(node.left) or self.holds(node.right)
        return self._is_got(node)

    def _is_got(self, node: nodes.Node | None) -> bool:
        """message.get('content')"""
        return (
            isinstance(node, nodes.Call)
            and isinstance(node.node, nodes.Getattr)
            and node.node.attr == "get"
            and bool(node.args)
            and isinstance(node.args[0], nodes.Const)
            and node.args[0].value == self._name
        )

    def is_read(self, tree: nodes.Template) -> bool:
        return any(self.holds(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call)))

    def is_tested(self, tree: nodes.Template, test: str) -> bool:
        return any(node.name == test and self.holds(node.node) for node in tree.find_all(nodes.Test))

    def is_compared_with_none(self, tree: nodes.Template) -> bool:
        return any(
            self.holds(node.expr) and any(_is_none(operand.expr) for operand in node.ops)
            for node in tree.find_all(nodes.Compare)
        )

    def is_gone_through(self, tree: nodes.Template) -> bool:
        """Whether the template iterates over the field or indexes it."""
        return (
            any(self.holds(loop.iter) for loop in tree.find_all(nodes.For))
            or any(node.name in _OF_PARTS and self.holds(node.node) for node in tree.find_all(nodes.Filter))
            or any(_is_numbered(node.node) and self.holds(node.node.node) for node in _inner_reads(tree))
        )

    def is_taken_apart(self, tree: nodes.Template) -> bool:
        """Whether the template does more with the field than print it as text."""
        return (
            any(self.holds(loop.iter) for loop in tree.find_all(nodes.For))
            or any(node.name not in _OF_TEXT and self.holds(node.node) for node in tree.find_all(nodes.Filter))
            or any(self.is_tested(tree, test) for test in ("string", "mapping", "iterable", "sequence"))
            or any(self.holds(node.node) for node in _inner_reads(tree))
        )


def _assigned(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """Each variable and the value assigned to it."""
    for node in tree.find_all(nodes.Assign):
        if isinstance(node.target, nodes.Name):
            yield node.target.name, node.node
        elif isinstance(node.target, nodes.NSRef):
            yield f"{node.target.name}.{node.target.attr}", node.node


def _passed(tree: nodes.Template, macros: dict[str, nodes.Macro]) -> Iterator[tuple[str, nodes.Node]]:
    """Each parameter of a macro and the value passed for it."""
    for call in tree.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is None:
            continue
        yield from ((parameter.name, value) for parameter, value in zip(macro.args, call.args, strict=False))
        yield from ((keyword.key, keyword.value) for keyword in call.kwargs)


def _inner_reads(tree: nodes.Template) -> Iterator[nodes.Getattr | nodes.Getitem]:
    yield from tree.find_all(nodes.Getattr)
    yield from (node for node in tree.find_all(nodes.Getitem) if not isinstance(node.arg, nodes.Slice))


def _is_numbered(node: nodes.Node) -> TypeGuard[nodes.Getitem]:
    """content[0]"""
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, int)


def _is_none(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value is None
