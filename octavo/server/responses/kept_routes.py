"""The routes of kept responses: read, followed, cancelled, deleted, and the items that they were made from."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.access import owner_of
from octavo.server.api_errors import JSON, ApiError, bad_field
from octavo.server.json_pieces import answer
from octavo.server.responses.asked import INCLUDABLE
from octavo.server.responses.making import MadeEvents
from octavo.server.responses.protocol import InputItems, Item, ResponseDeleted
from octavo.server.responses.routes import create_response
from octavo.server.serving import Endpoint, Serving, json_response
from octavo.shown import shown

_MAX_PAGE = 100
#: an item's type -> how its id begins
_KINDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


async def get_response(request: Request, serving: Serving) -> Response:
    """A response; with `stream=true` the events of one that is streamed in the background, behind `starting_after`."""
    owner, response_id = owner_of(request), request.path_params["id"]
    query = request.query_params
    _check_include(query.getlist("include") + query.getlist("include[]"))
    if query.get("include_obfuscation", "false") != "false":
        raise bad_field("include_obfuscation", "is not supported here: leave it out", "unsupported_parameter")
    after = _number("starting_after", query.get("starting_after"), -1, 0, 2**31)
    if query.get("stream", "false") not in ("true", "false"):
        raise bad_field("stream", f"is {shown(query['stream'])}, allowed are true and false")
    if query.get("stream") == "true":
        return serving.event_stream(await _followed(serving, owner, response_id, after), MadeEvents(), {})
    if "starting_after" in query:
        raise bad_field("starting_after", "is set and stream is not, allowed is both or neither: set stream to true")
    running = serving.responses.running_of(owner, response_id)
    if running is not None:
        return await answer(serving.lanes, 0, lambda: running.response)
    return Response((await serving.responses.get(owner, response_id)).body, media_type=JSON)


async def cancel_response(request: Request, serving: Serving) -> Response:
    """End a response that is made in the background. One that has ended stays as it is."""
    owner, response_id = owner_of(request), request.path_params["id"]
    running = serving.responses.running_of(owner, response_id)
    if running is not None:
        await running.cancel()
        return await answer(serving.lanes, 0, lambda: running.response)
    kept = await serving.responses.get(owner, response_id)
    if not msgspec.json.decode(kept.body).get("background"):
        problem = f"the response {shown(response_id)} was not made in the background: close its connection to end it"
        raise ApiError(400, problem, param="id", code="response_not_in_background")
    return Response(kept.body, media_type=JSON)


async def delete_response(request: Request, serving: Serving) -> Response:
    """Forget a response; one that is still made ends. What continues it can be read, but not continued."""
    owner, response_id = owner_of(request), request.path_params["id"]
    running = serving.responses.running_of(owner, response_id)
    if running is not None:
        await running.cancel()
    await serving.responses.remove(owner, response_id)
    return json_response(ResponseDeleted(id=response_id))


async def list_input_items(request: Request, serving: Serving) -> Response:
    """The items that a response was made from, those of the responses that it continues included; the newest first."""
    owner, response_id = owner_of(request), request.path_params["id"]
    query = request.query_params
    _check_include(query.getlist("include") + query.getlist("include[]"))
    limit, order = _number("limit", query.get("limit"), 20, 1, _MAX_PAGE), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_field("order", f"is {shown(order)}, allowed are asc and desc")
    items = [_with_id(item, place, response_id) for place, item in enumerate(await _input(serving, owner, response_id))]
    items = items[::-1] if order == "desc" else items
    if (after := query.get("after")) is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise bad_field("after", f"is {shown(after)}, allowed is the id of one of the items")
        items = items[places[0] + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    told = InputItems(data=page, first_id=first, last_id=last, has_more=len(items) > limit)
    return await answer(serving.lanes, len(page) * 64, lambda: told)


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/responses", create_response),
    ("GET", "/v1/responses/{id}", get_response),
    ("DELETE", "/v1/responses/{id}", delete_response),
    ("POST", "/v1/responses/{id}/cancel", cancel_response),
    ("GET", "/v1/responses/{id}/input_items", list_input_items),
)


async def _followed(serving: Serving, owner: str, response_id: str, after: int) -> AsyncGenerator[bytes]:
    """Raises ApiError if its events are not kept."""
    running = serving.responses.running_of(owner, response_id)
    if running is not None:
        followed = running.follow(after)
    else:
        sent = (await serving.responses.get(owner, response_id)).events
        followed = None if sent is None else _sent(sent, after)
    if followed is None:
        problem = "is true, but only a response that was made with background and stream has its events kept"
        raise bad_field("stream", problem)
    return followed


async def _sent(events: bytes, after: int) -> AsyncGenerator[bytes]:
    for event in events.split(b"\n\n")[after + 1 : -1]:
        yield event + b"\n\n"


async def _input(serving: Serving, owner: str, response_id: str) -> list[Item]:
    running = serving.responses.running_of(owner, response_id)
    if running is not None:
        sent, previous = running.input, running.response.previous_response_id
    else:
        kept = await serving.responses.get(owner, response_id)
        sent, previous = kept.input, kept.previous
    earlier = [] if previous is None else await serving.responses.items(owner, previous)
    return [*earlier, *msgspec.json.decode(sent)]


def _with_id(item: Item, place: int, response_id: str) -> Item:
    """As OpenAI's API tells items: with an id, a type, and content in parts."""
    kind = item.get("type") or "message"
    made = {**item, "type": kind, "id": item.get("id") or f"{_KINDS[kind]}_{response_id.removeprefix('resp_')}_{place}"}
    if kind == "message" and isinstance(text := item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        made["content"] = [{"type": part, "text": text, **({"annotations": []} if part == "output_text" else {})}]
    if kind != "reasoning":
        made.setdefault("status", "completed")
    return made


def _check_include(names: list[str]) -> None:
    for name in names:
        if name not in INCLUDABLE:
            raise bad_field("include", f"holds {shown(name)}, allowed are {', '.join(INCLUDABLE)}")


def _number(name: str, text: str | None, default: int, low: int, high: int) -> int:
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise bad_field(name, f"is {shown(text)}, allowed is {low} to {high}")
    return int(text)
