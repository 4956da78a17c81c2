"""gpt-oss's harmony format: an answer is a list of messages, each on a channel; thoughts, calls and content alike.

<|channel|>analysis<|message|>The user wants ...<|end|>
<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>
<|start|>assistant<|channel|>final<|message|>The sum is 3.<|return|>
"""

from __future__ import annotations

import re

from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_calls import arguments

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
_START, _CHANNEL, _MESSAGE, *_ = MARKS
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.\-]+)")


def read_harmony(feed: Feed) -> Steps[None]:
    """The whole answer. It begins behind <|start|>assistant, which the prompt ends with."""
    while first := (yield from feed.upcoming()):
        if first != "<" and not (yield from feed.begins_with("to=")):
            yield from _back_to(feed, _START, _CHANNEL)
            continue
        feed.open("")
        try:
            yield from _message(feed)
            feed.shut()
        except BrokenCall:
            feed.give_up()
            yield from feed.until(_ENDS, feed.say)


def _back_to(feed: Feed, *marks: str) -> Steps[None]:
    """Text outside of messages, which is content."""
    mark = yield from feed.until(marks, feed.say)
    feed.put_back(mark)


def _message(feed: Feed) -> Steps[None]:
    header, _ = yield from feed.name_until(_MESSAGE)
    recipient = _RECIPIENT.search(header)
    if recipient is not None:
        feed.begin(recipient[1])
        yield from arguments(feed)
        feed.end()
        yield from feed.close(*_ENDS)
        return
    feed.shut()
    is_thought = header.rpartition(_CHANNEL)[2].lstrip().startswith("analysis")
    mark = yield from feed.until((*_ENDS, _START), feed.think if is_thought else feed.say)
    if mark == _START:
        feed.put_back(mark)
