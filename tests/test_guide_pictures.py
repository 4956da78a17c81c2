"""The pictures of the README and the guides are those that the commands under them draw."""

from pathlib import Path

import pytest

from tests.guide_pictures import PAGES, PICTURES, ROOT, commands_of, draw, pictures_of


def test_the_pictures_of_the_readme_are_what_their_commands_draw(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    draw(page, tmp_path)
    assert len(pictures_of(page)) == 2
    for name in pictures_of(page):
        assert (tmp_path / name).read_bytes() == (PICTURES / name).read_bytes(), f"{name}: run `make pictures`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_stands_under_every_picture(page: Path) -> None:
    drawn = [word for command in commands_of(page) for word in command if word.endswith(".svg")]
    assert pictures_of(page) == drawn


def test_chinese_pages_have_the_same_pictures_and_commands() -> None:
    for english, chinese in (("README.md", "README.zh.md"), ("docs/guides/why-fast.md", "docs/zh/why-fast.md")):
        assert pictures_of(ROOT / chinese) == pictures_of(ROOT / english)
        assert commands_of(ROOT / chinese) == commands_of(ROOT / english)


def test_every_picture_is_shown() -> None:
    shown = {name for page in PAGES for name in pictures_of(page)}
    assert {picture.name for picture in PICTURES.glob("*.svg")} == shown


def test_commands_may_go_on_in_the_next_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "![A map](pictures/a.svg)\n\n    cd it\n    octavo run m \\\n      -n 2\n    octavo viz x\n\n    octavo list\n"
    )
    assert commands_of(page) == [["octavo", "run", "m", "-n", "2"], ["octavo", "viz", "x"]]
