"""The compatibility page matches the code, and what it adds to the code names only things that exist."""

from dataclasses import fields
from pathlib import Path

import pytest

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.config import EngineConfig
from octavo.server.app import OPTIONAL_ROUTES, ROUTES
from octavo.server.bodies import INSTEAD, NEUTRAL
from octavo.server.settings import ServerSettings
from octavo.server_config import AdmissionConfig, ServerConfig, TransferConfig
from tests import compatibility_page as compatibility
from tests.compatibility_page import DIFFERENT, OURS, ROUTES_NOT_HERE

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

THERE = {
    "options": {field.name for section in fields(EngineConfig) for field in fields(section.default_factory)},
    "flags": {
        field.name
        for section in (ServerConfig, TransferConfig, AdmissionConfig, ServerSettings)
        for field in fields(section)
    },
    "parameters": {field.name for field in fields(SamplingParams)},
    "routes": {path for _, path, _ in (*ROUTES, *OPTIONAL_ROUTES)},
    "fields": set(compatibility._fields()),
    "methods": {name for one in (LLM, AsyncLLM) for name in dir(one)},
}


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == compatibility.page(), "run python -m tests.compatibility_page > docs/compatibility.md"


@pytest.mark.parametrize("kind", THERE)
def test_what_differs_and_what_is_ours_is_there(kind: str) -> None:
    assert set(DIFFERENT[kind]) <= THERE[kind]
    assert OURS[kind] <= THERE[kind]
    assert not OURS[kind] & set(DIFFERENT[kind])


def test_what_is_not_there_is_not() -> None:
    assert set(INSTEAD) <= set(NEUTRAL), "a field that is here now is told of as missing"
    missing = {path.strip() for row in ROUTES_NOT_HERE for path in row.split(",")}
    assert not missing & THERE["routes"]


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_fields_that_are_refused_are_on_the_page(name: str) -> None:
    assert f"| `{name}` | `None`" in PAGE.read_text()
