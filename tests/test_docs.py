"""The documentation's links resolve, its Python runs, and its flags and fields exist."""

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest

from octavo.sampling_params import SamplingParams
from tests.warm_python import WarmPython

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, in GitHub's spelling."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {link}, a heading that is not there"


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))], ids=name)
def test_python_in_pages_runs(page: Path, python: WarmPython) -> None:
    done = python.run("\n".join(PYTHON.findall(page.read_text(encoding="utf-8"))), cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_sampling_field_is_documented() -> None:
    page = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {field.name for field in fields(SamplingParams)}


def test_every_family_is_documented() -> None:
    from octavo.models.registry import FAMILIES

    page = re.sub(r"[^a-z0-9]", "", (ROOT / "docs/models.md").read_text(encoding="utf-8").lower())
    for family in FAMILIES:
        assert family.replace("_", "").rstrip("0123456789") in page, f"docs/models.md does not mention {family}"


def test_every_environment_variable_is_documented() -> None:
    from octavo import env

    assert env.__doc__ is not None
    read = set(re.findall(r"^    ([A-Z][A-Z_]+) ", env.__doc__, re.MULTILINE))
    page = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) == read


def command_lines(page: Path) -> list[str]:
    """Every octavo command in a block of a page, with its continued lines; three spaces begin a comment."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^    (?:\.venv/bin/)?octavo (\S.*)$", text, re.MULTILINE)
    return [re.split(r" {3,}", re.sub(r" +(?=--)", " ", line))[0] for line in found]


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=name)
def test_command_lines_in_pages_are_understood(page: Path) -> None:
    """Commands are only parsed; words in capitals are placeholders."""
    from octavo.cli.main import COMMANDS, parser_of

    for line in command_lines(page):
        words = shlex.split(line.partition(" < ")[0].partition(" | ")[0])
        if "[options]" in words or "COMMAND" in words or words[0] == "help":
            continue
        command = next(one for one in COMMANDS if words[: one.count(" ") + 1] == one.split())
        module = importlib.import_module(f"octavo.cli.{re.sub('[ -]', '_', command)}")
        rest = words[command.count(" ") + 1 :]
        if rest != ["--config", "server.yaml"]:
            parser_of(command, cast(Any, module)).parse(rest)
