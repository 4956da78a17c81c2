"""Templates in separate processes: whatever one does ends soon, with one of Octavo's errors, and the next one works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from octavo.engine.options import engine_config
from octavo.errors import InvalidRequestError, OctavoError, TokenizerError
from octavo.text.template_process import TemplateProcesses
from tests.text import tokenizers

USER = {"role": "user", "content": "Hi"}
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
LISTS = GROW.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]")

NASTY = {
    "a long loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a range": "{{ range(10**9) | join }}",
    "padding": "{{ 'a'.ljust(10**10) }}",
    "a filter that pads": "{{ 'a' | center(10**10) }}",
    "a text repeated": "{{ 'a' * 10**10 }}",
    "a list repeated": "{{ [1] * 10**10 }}",
    "a power": "{{ (10 ** (10 ** 8)) % 7 }}",
    "filler text": "{{ lipsum(n=10**6) }}",
    "indentation": "{{ ('a\n' * 1000) | indent(10**8) }}",
    "JSON's indentation": "{{ messages | tojson(indent=10**9) }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "another width": "{{ '{:>10000000000}'.format(1) }}",
    "tabs": "{{ '\t'.expandtabs(10**10) }}",
    "batches": "{{ [1] | batch(10**10, 'x') | list }}",
    "slices": "{{ [1] | slice(10**8) | list }}",
    "a text that doubles": GROW.replace("START", "'aa'").replace("STEP", "ns.x + ns.x") + "{{ ns.x }}",
    "a text of replacements": GROW.replace("START", "'aa'").replace("STEP", "ns.x.replace('a', 'aaa')"),
    "lists of lists, printed": LISTS + "{{ ns.x }}",
    "lists of lists, compared": LISTS + LISTS.replace("ns", "n") + "{{ ns.x == n.x }}",
    "pairs of pairs, as a key": GROW.replace("START", "1").replace("STEP", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "a macro of itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a loop of itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block of itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "deep conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep loops": "{% for a in [1] %}" * 50 + "x" + "{% endfor %}" * 50,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "many negations": "{{ " + "not " * 20000 + "1 }}",
    "many signs": "{{ " + "-" * 50000 + "1 }}",
    "many sums": "{{ 1" + "+1" * 20000 + " }}",
    "a long answer": "{{ 'a' * 40000000 }}",
    "a long complaint": "{{ raise_exception('x' * 1000000) }}",
    "a file": "{% include '/etc/passwd' %}",
    "an attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "no filter": "{{ 1 | nothing }}",
    "no end": "{% for m in messages %}",
}


@pytest.fixture(scope="module")
def processes() -> Iterator[TemplateProcesses]:
    made = TemplateProcesses(max_cpu_s=0.1)
    yield made
    made.close()


def render(processes: TemplateProcesses, template: str, messages: Any = (USER,), **variables: Any) -> str:
    return processes.render(
        template=template,
        messages=list(messages),
        add_generation_prompt=True,
        continue_final_message=False,
        variables=variables,
    )


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_template_ends_with_an_error_of_ours(processes: TemplateProcesses, name: str) -> None:
    before = os.times()
    with pytest.raises((InvalidRequestError, TokenizerError)) as refusal:
        render(processes, NASTY[name])
    assert 10 < len(str(refusal.value)) < 1500
    after = os.times()
    ours = after.user + after.system - before.user - before.system
    theirs = after.children_user + after.children_system - before.children_user - before.children_system
    assert ours < 0.5, "this process was held up"
    assert theirs < 2.0
    assert render(processes, "{{ messages[0].content }}") == "Hi"


def test_what_takes_too_long_says_so(processes: TemplateProcesses) -> None:
    with pytest.raises(InvalidRequestError, match=r"did not end within 0\.1 s of CPU time"):
        render(processes, NASTY["a long loop"])


@pytest.mark.parametrize("depth", [3000, 10_000])
def test_messages_may_be_nested_too_deeply(processes: TemplateProcesses, depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    for messages in ([{"role": "user", "content": nested}], [{**USER, "more": nested}]):
        with pytest.raises(OctavoError):
            render(processes, "{{ messages | tojson }}{{ messages }}", messages)


def test_values_arrive_as_they_are(processes: TemplateProcesses) -> None:
    class Frozen(Mapping[str, Any]):
        def __init__(self, inside: dict[str, Any]) -> None:
            self.inside = inside

        def __getitem__(self, key: str) -> Any:
            return self.inside[key]

        def __iter__(self) -> Iterator[str]:
            return iter(self.inside)

        def __len__(self) -> int:
            return len(self.inside)

    value = {"a": [1, 2.5, None, True, 2**70, "w\u00f6rld \U0001f44b"]}
    expected = '{"a": [1, 2.5, null, true, 1180591620717411303424, "w\u00f6rld \U0001f44b"]}'
    assert render(processes, "{{ value | tojson }}", value=value) == expected
    assert render(processes, "{{ value | tojson }}", value=Frozen(value)) == expected
    keys = Frozen({("a", 1): 2})  # type: ignore[dict-item]
    assert render(processes, "{% for key in value %}{{ key }}{% endfor %}", value=keys) == "('a', 1)"
    with pytest.raises(InvalidRequestError, match=r"hold <object object .*allowed are texts, numbers, lists"):
        render(processes, "{{ value }}", value=object())


def test_a_process_that_was_killed_is_replaced(processes: TemplateProcesses) -> None:
    pid = _child_of(processes)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)
    assert render(processes, "{{ 1 }}") == "1"
    assert _child_of(processes) != pid


def _child_of(processes: TemplateProcesses) -> int:
    render(processes, "{{ 1 }}")
    return processes._idle[-1]._process.pid


def test_an_honest_template_is_quick() -> None:
    """A twentieth of a millisecond on a quiet machine; the bound is for busy ones."""
    tokenizer = tokenizers.packaged("smollm2")
    tokenizer.apply_chat_template([USER])
    seconds = []
    for _ in range(100):
        begin = time.perf_counter()
        tokenizer.apply_chat_template([USER])
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[20] < 2e-3


def test_it_ends_with_its_parent() -> None:
    code = (
        "import os, sys; from octavo.text.template_process import template_processes as t; t().check('x');"
        "print(t()._idle[0]._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                return
        time.sleep(0.01)
    raise AssertionError("it lives on")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("/nowhere/template.jinja", "neither a template nor a file"),
        ("", "neither a template nor a file"),
        ("{% for m in messages %}{{ m.content }", "broken at line 1"),
        ("{{ 'Hello' }}", "never reads messages"),
        (NASTY["deep parentheses"], "nests too deeply"),
    ],
)
def test_a_chat_template_is_checked_before_a_model_is_looked_for(template: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        engine_config(model="/nowhere/model", chat_template=template)
