"""Routes that are not there: what was likely meant, and what a route is for."""

from __future__ import annotations

import pytest

from octavo.server.settings import ServerSettings
from tests.server.scripted_engine import app_of, get, post

MEANT = {
    "/chat/completions": "did you mean /v1/chat/completions? let the client's base URL end in /v1",
    "/embeddings": "did you mean /v1/embeddings? let the client's base URL end in /v1",
    "/v1/v1/messages": "did you mean /v1/messages? leave /v1 out of the client's base URL",
    "/v1/tokenize": "did you mean /tokenize? leave /v1 out of the client's base URL",
    "/v1/chat/completion": "did you mean /v1/chat/completions?",
    "/v1/images/generations": "see /openapi.json",
}


@pytest.mark.parametrize("path", MEANT)
def test_what_was_meant_is_said(path: str) -> None:
    answer = post(app_of(), path, {})
    assert answer.status == 404
    assert answer.error["message"] == f"there is no '{path}' here; {MEANT[path]}"


def test_methods_of_a_route_are_said() -> None:
    answer = get(app_of(), "/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["message"] == "'/v1/chat/completions' is not for GET, allowed is POST"
    answer = post(app_of(), "/v1/responses/resp_1", {})
    assert answer.error["message"] == "'/v1/responses/resp_1' is not for POST, allowed is DELETE, GET"


def test_a_page_that_is_not_served_is_not_named() -> None:
    assert ServerSettings().disable_fastapi_docs is False
    answer = get(app_of(disable_fastapi_docs=True), "/nowhere/at/all")
    assert answer.error["message"] == "there is no '/nowhere/at/all' here; the documentation lists the routes"
