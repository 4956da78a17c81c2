"""The documentation as a site: every page is in it, and every link and picture leads to a file of it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
ROOT = Path(__file__).parent.parent
_LOCAL = re.compile(r'(?:href|src)="?(?!https?:|data:|mailto:|//)([^"#?> ]+)')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in ROOT.glob("docs/**/*.md")}
    pages |= {page.with_suffix(".html").name for page in ROOT.glob("*.md")}
    there = {page.relative_to(site).as_posix() for page in site.glob("**/*.html")}
    assert {page.replace("README.html", "index.html") for page in pages} <= there


def test_links_and_pictures_lead_to_files_of_the_site(site: Path) -> None:
    lost = set()
    for page in site.glob("**/*.html"):
        if page.name != "404.html":  # its links are absolute
            links = set(_LOCAL.findall(page.read_text(encoding="utf-8")))
            lost |= {(page.name, link) for link in links if not (page.parent / unquote(link)).exists()}
    assert not lost


def test_links_to_source_files_show_them(site: Path) -> None:
    source = (site / "source/octavo/observe/events.py.txt").read_text(encoding="utf-8")
    assert source == (ROOT / "octavo/observe/events.py").read_text(encoding="utf-8")
    assert "examples/quickstart.py" in (site / "source/examples.txt").read_text(encoding="utf-8").splitlines()
