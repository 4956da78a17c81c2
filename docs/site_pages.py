"""What the site (mkdocs.yml) needs beyond docs/: pages at the root of the repository, and source files that are linked.

Pages are written for a reader of the repository, with links relative to their files. On the site

    ../GLOSSARY.md              is the page GLOSSARY.md, README.md is index.md
    ../octavo/llm.py            is the file's text, source/octavo/llm.py.txt
    ../examples                 is the list of that folder's files, source/examples.txt

A link that leads nowhere stays as it is, and then `make site` fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"^( *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page in ROOT.glob("*.md"):
        files.append(File.generated(config, _uri(page), abs_src_path=str(page)))
    linked = {target for file in files.documentation_pages() for target in _targets(file)}
    for target in sorted(linked):
        if _uri(target).startswith("source/"):
            files.append(File.generated(config, _uri(target), content=_text(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = os.path.dirname(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        target = _target(page.file, link[2])
        path = link[2] if target is None else os.path.relpath(_uri(target), folder or ".")
        return link[1] + path + (link[3] or "") + link[4]

    parts = _CODE.split(markdown)  # code is every other one
    return "".join(part if number % 2 else _LINK.sub(on_site, part) for number, part in enumerate(parts))


def _targets(file: File) -> set[Path]:
    prose = _CODE.sub("", file.content_string)
    found = {_target(file, link[2]) for link in _LINK.finditer(prose)}
    return {target for target in found if target is not None}


def _target(file: File, link: str) -> Path | None:
    """The file or folder of the repository that a page's link means, if it is there."""
    if ":" in link or file.abs_src_path is None:
        return None
    target = (Path(file.abs_src_path).parent / link).resolve()
    return target if target.is_relative_to(ROOT) and target.exists() else None


def _uri(path: Path) -> str:
    """A file's place among the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path.parent == ROOT and path.suffix == ".md":
        return "index.md" if path.name == "README.md" else path.name
    return f"source/{path.relative_to(ROOT).as_posix()}.txt"


def _text(path: Path) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return "\n".join(one.relative_to(ROOT).as_posix() for one in sorted(path.rglob("*")) if one.is_file())
