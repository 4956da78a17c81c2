"""AnswerStyle: how one model writes thoughts and calls, found in its chat template or named by options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.shown import shown, suggestion
from octavo.text.answers.feed import Feed, Steps
from octavo.text.answers.formats import FORMATS, CallFormat, read_calls, read_text
from octavo.text.answers.harmony import MARKS, read_harmony
from octavo.text.answers.thinking import THOUGHTS, ThoughtMarks, ThoughtState, read_thoughts
from octavo.text.tools_in_text import reads_tools

#: parser -> what its models' templates have: all of one of the groups. The first that fits counts.
_CALL_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai", ("<|channel|>", "functions")),
    ("deepseek_v3", ("<｜tool▁call▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁call▁begin｜>",)),
    ("kimi_k2", ("<|tool_call_begin|>",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("glm45", ("<tool_call>", "<arg_key>")),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("functiongemma", ("<start_function_call>",)),
    ("gemma4", ("<|tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("hermes", ("<tool_call>",)),
    ("granite", ("<|tool_call|>", "<|start_of_role|>")),
    ("phi4_mini_json", ("<|tool|>",)),
    ("llama4_pythonic", ("<|header_start|>", "[func_name1(")),
    ("llama4_pythonic", ("<|python_start|>",)),
    ("llama3_json", ("<|start_header_id|>", '"parameters"')),
)
_THOUGHT_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai_gptoss", ("<|channel|>", "analysis")),
    ("gemma4", ("<|channel>thought",)),
    ("mistral", ("[THINK]",)),
    ("seed_oss", ("<seed:think>",)),
    ("granite", ("Here is my thought process:",)),
    ("qwen3", ("</think>",)),
    ("qwen3", ("<think>",)),
)


def named_call_parsers() -> list[str]:
    return sorted([*FORMATS, "openai"])


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """calls, thoughts: names of parsers; None: the model writes none, or no parser reads them."""

    calls: str | None = None
    thoughts: str | None = None

    @property
    def is_harmony(self) -> bool:
        return self.thoughts == "openai_gptoss" or self.calls == "openai"

    @property
    def thought_marks(self) -> ThoughtMarks | None:
        return None if self.thoughts is None else THOUGHTS[self.thoughts]

    def marks(self, has_calls: bool) -> tuple[str, ...]:
        """The texts by which thoughts and calls are found, which tokens must not hide."""
        if self.is_harmony:
            return MARKS
        found = self.thought_marks
        thoughts = () if found is None else (found.begin.strip(), found.end)
        return (*thoughts, *(FORMATS[self.calls].opens if has_calls and self.calls is not None else ()))

    def reader(self, state: ThoughtState, calls: CallFormat | None) -> Callable[[Feed], Steps[None]]:
        """Reads an answer. calls: the format of the calls in it, None if there are to be none."""
        if self.is_harmony:
            return read_harmony
        marks = self.thought_marks

        def read(feed: Feed) -> Steps[None]:
            if marks is not None:
                yield from read_thoughts(feed, marks, state)
            yield from read_text(feed) if calls is None else read_calls(feed, calls)

        return read


def answer_style(template: str | None, calls: str | None = None, thoughts: str | None = None) -> AnswerStyle:
    """calls, thoughts: names given by options, "none" for no parser; None: what the template shows.
    Raises ConfigError."""
    if calls is None and template and not reads_tools(template):
        calls = "hermes"  # tools_in_text.py shows them so
    return AnswerStyle(
        _chosen("tool_call_parser", calls, named_call_parsers(), template, _CALL_SIGNS),
        _chosen("reasoning_parser", thoughts, sorted(THOUGHTS), template, _THOUGHT_SIGNS),
    )


def _chosen(
    option: str,
    name: str | None,
    known: Sequence[str],
    template: str | None,
    signs: tuple[tuple[str, tuple[str, ...]], ...],
) -> str | None:
    if name == "none":
        return None
    if name is not None:
        if name not in known:
            raise ConfigError(f"{option} is {shown(name)}, which is unknown; {suggestion(name, ['none', *known])}")
        return name
    text = template or ""
    return next((parser for parser, found in signs if all(one in text for one in found)), None)
