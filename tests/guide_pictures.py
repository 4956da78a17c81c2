"""The pictures of the README and the guides, made anew by the commands that stand under them: `make pictures`.

    ![The memory map](pictures/map.svg)

        octavo run smollm2 -i batch.jsonl --record batch.olog
        octavo viz batch.olog --svg map.svg

The commands are for a reader in docs/guides/pictures, where the prompts are. They run here in a copy of that folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs/guides/pictures"
PAGES = (ROOT / "README.md", ROOT / "docs/guides/why-fast.md", ROOT / "docs/guides/new-idea.md")
_PICTURE = re.compile(r"^!\[[^\]]+\]\(\S*pictures/(\S+\.svg)\)\n", re.MULTILINE)
_UNDER = re.compile(r"^!\[[^\]]+\]\(\S*pictures/\S+\.svg\)\n\n((?: {4}.*\n)+)", re.MULTILINE)
_PROGRAMS = {"octavo": ["-m", "octavo"], "python": []}


def pictures_of(page: Path) -> list[str]:
    return _PICTURE.findall(page.read_text(encoding="utf-8"))


def commands_of(page: Path) -> list[list[str]]:
    """The commands under a page's pictures, in order."""
    blocks = "".join(_UNDER.findall(page.read_text(encoding="utf-8")))
    lines = map(shlex.split, re.sub(r" *\\\n *", " ", blocks).splitlines())
    return [words for words in lines if words[0] != "cd"]


def draw(page: Path, folder: Path) -> None:
    """Run a page's commands in a folder, which then has its pictures."""
    for file in PICTURES.glob("*.jsonl"):
        shutil.copy(file, folder)
    for program, *given in commands_of(page):
        words = [word.replace("../../..", str(ROOT)) for word in given]
        done = subprocess.run(
            [sys.executable, *_PROGRAMS[program], *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {shlex.join(words)}\n{done.stderr}"


def main() -> None:
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder:
            draw(page, Path(folder))
            for name in pictures_of(page):
                shutil.copy(Path(folder) / name, PICTURES / name)
                print(f"docs/guides/pictures/{name}")


if __name__ == "__main__":
    main()
