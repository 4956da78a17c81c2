"""How models write their thoughts: between two marks, before everything else. The names are vLLM's reasoning parsers'.

the prompt ends with      the answer is
<think>                   thoughts </think> content
</think>                  content
anything else             <think> thoughts </think> content, or content alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from octavo.text.answers.feed import Feed, Steps

#: whether the prompt has begun the thoughts, has ended them, or leaves it to the model
ThoughtState = Literal["begun", "ended", "open"]


#: tokens at a prompt's end that say so
PROMPT_END = 16


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """is_implied: an answer begins with thoughts even if neither it nor its prompt has the first mark. closing: what
    ends them in the model's place; "": the second mark."""

    begin: str
    end: str
    is_implied: bool = False
    closing: str = ""

    def state(self, prompt_end: str) -> ThoughtState:
        """prompt_end: the last part of a prompt, with special tokens."""
        bare = prompt_end.rstrip()
        if bare.endswith(self.end):
            return "ended"
        return "begun" if bare.endswith(self.begin.rstrip()) or self.is_implied else "open"


_THINK = ThoughtMarks("<think>", "</think>")
_HARMONY = ThoughtMarks(
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    is_implied=True,
    closing="<|end|><|start|>assistant<|channel|>final<|message|>",
)
_IMPLIED = ThoughtMarks("<think>", "</think>", is_implied=True)

#: parser -> its marks; harmony's thoughts are messages, which harmony.py reads
THOUGHTS: Mapping[str, ThoughtMarks] = {
    **dict.fromkeys(("qwen3", "glm45", "olmo3", "nemotron_v3", "hunyuan_a13b", "deepseek_v3"), _THINK),
    **dict.fromkeys(("deepseek_r1", "minimax_m2", "kimi_k2", "step3"), _IMPLIED),
    "granite": ThoughtMarks("Here is my thought process:", "Here is my response:"),
    "mistral": ThoughtMarks("[THINK]", "[/THINK]"),
    "seed_oss": ThoughtMarks("<seed:think>", "</seed:think>"),
    "gemma4": ThoughtMarks("<|channel>thought\n", "<channel|>"),
    "openai_gptoss": _HARMONY,
}


def read_thoughts(feed: Feed, marks: ThoughtMarks, state: ThoughtState) -> Steps[None]:
    """The thoughts of an answer, if it has any; the white space around them is markup."""
    if state == "ended":
        return
    while not feed.text.strip() and not feed.has_ended:
        yield
    bare = len(feed.text) - len(feed.text.lstrip())
    space = feed.take(bare)
    has_mark = yield from feed.accept(marks.begin)
    if state == "open" and not has_mark:
        feed.say(space)
        return
    yield from feed.until((marks.end,), feed.think)
    yield from feed.space()
