"""One run as one HTML page that loads nothing: memory, block tables, schedule, prefix tree and numbers of every step.

The page holds what each step changed (deltas.py), and hand-written scripts that replay it (replay.js), paint it
(cells.js, views.js, schedule.js), tell it in words (words.js) and let a person go through it (page.js). Its policy
allows these scripts and nothing else, so whatever a log holds is only ever text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files

from octavo.viz.deltas import Deltas

SCRIPTS = ("replay.js", "cells.js", "views.js", "schedule.js", "words.js", "page.js")


def render(deltas: Deltas, title: str) -> str:
    """The page of a run."""
    data = json.dumps(deltas.data(), separators=(",", ":")).replace("<", "\\u003c")
    parts = {"policy": _policy(), "title": html.escape(title), "style": _style(), "script": _script(), "data": data}
    page = _text("page.html")
    for name, text in parts.items():  # the data last, as it may hold any text
        page = page.replace(f"{{{name}}}", text)
    return page


@cache
def _text(name: str) -> str:
    return files("octavo.viz").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    return _text("page.css")


@cache
def _script() -> str:
    return '"use strict";\n' + "\n".join(_text(name) for name in SCRIPTS)


@cache
def _policy() -> str:
    return f"default-src 'none'; script-src {_hash_of(_script())}; style-src {_hash_of(_style())}; img-src data:"


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
