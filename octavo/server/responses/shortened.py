"""A conversation without its oldest items, for `truncation: auto` where it is too long for the model.

system | user 1  call 1  result 1  answer 1 | user 2  answer 2 | user 3  call 3  result 3  call 4
                                            └─ first whole turns go; the last message of a user stays,
                                                                         └─ then the oldest of what follows it
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from octavo.server.responses.protocol import Item

Place = tuple[str, Item]  # an item, and where it stands in the request
Made = TypeVar("Made")


async def longest_that_fits(
    places: Sequence[Place], attempt: Callable[[Sequence[Place]], Awaitable[Made | None]]
) -> Made | None:
    """What `attempt` makes of the conversation with the fewest items left out; None: it makes nothing of any. As what
    is too long stays so with more items, few lists are tried."""
    if (whole := await attempt(places)) is not None:
        return whole
    lists, found = shorter(places), None
    low, high = 0, len(lists)
    while low < high:
        middle = (low + high) // 2
        made = await attempt(lists[middle])
        if made is None:
            low = middle + 1
        else:
            found, high = made, middle
    return found


def shorter(places: Sequence[Place]) -> list[list[Place]]:
    """The conversation with ever fewer of its oldest items. What system and developer say stays, and so do the last
    item and the last message of a user."""
    fixed = [place for place in places if _is_by(place, "system", "developer")]
    rest = [place for place in places if not _is_by(place, "system", "developer")]
    starts = [index for index, place in enumerate(rest) if _is_by(place, "user")]
    turns = [[*fixed, *rest[start:]] for start in starts if start > 0]
    head, tail = (rest[starts[-1] : starts[-1] + 1], rest[starts[-1] + 1 :]) if starts else ([], rest)
    return turns + [[*fixed, *head, *_with_calls(tail[num:])] for num in range(1, len(tail))]


def _with_calls(places: list[Place]) -> list[Place]:
    """Without the results of calls that are not among them."""
    called = {item.get("call_id") for _, item in places if item.get("type") == "function_call"}
    return [
        (where, item)
        for where, item in places
        if item.get("type") != "function_call_output" or item["call_id"] in called
    ]


def _is_by(place: Place, *roles: str) -> bool:
    item = place[1]
    return (item.get("type") or "message") == "message" and item.get("role") in roles
