"""The thoughts that a request's answer may have before it, as tokens that the worker can follow."""

from __future__ import annotations

from octavo.structured_outputs import StructuredOutputsParams, Thoughts
from octavo.text.answers.thinking import ThoughtMarks
from octavo.text.tokenizer import Tokenizer


def asked_thoughts(
    tokenizer: Tokenizer,
    marks: ThoughtMarks,
    prompt_end: list[int],
    form: StructuredOutputsParams | None,
    budget: int | None,
) -> Thoughts | None:
    """None: the answer begins at once."""
    state = tokenizer.thought_state(prompt_end)
    if state == "ended" or (form is not None and form.after_thoughts is False):
        return None
    if state == "open" and budget is None and (form is None or not form.after_thoughts):
        return None
    texts = marks.begin, marks.end, marks.closing or marks.end
    begin, end, closing = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return Thoughts(begin=begin, end=end, closing=closing, is_begun=state == "begun", budget=budget)
