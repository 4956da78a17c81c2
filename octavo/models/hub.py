"""Downloads models from the Hugging Face hub: only the needed files, into the hub library's own cache."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from octavo.errors import ModelLoadError
from octavo.models.gguf_parts import first_parts, part_names
from octavo.models.packaged import PACKAGED_MODELS

#: the files of a model besides its weights: configuration, tokenizer, chat templates
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "tiktoken.model", "merges.txt", "vocab.txt"]
_NAME = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(:(?P<file>[\w./-]+\.gguf))?")
_LONGEST_NAME = 255

T = TypeVar("T")


def is_hub_name(name: str) -> bool:
    """Whether a name could be a hub id: `owner/name`, `name` or `owner/name:file.gguf`."""
    return _NAME.fullmatch(name) is not None and not name.startswith(".") and len(name) <= _LONGEST_NAME


def download_model(name: str, revision: str | None) -> Path:
    """A folder with configuration and safetensors, or the GGUF file of a repository without safetensors."""
    (repo, file), hub = _parsed(name), _hub(name)
    if file:
        return _download_gguf(name, repo, file, revision)
    patterns = ["*.safetensors", *_SMALL_FILES]
    folder = Path(_ask(name, lambda: hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)))
    if any(folder.glob("*.safetensors")):
        return folder
    files = _ask(name, lambda: hub.list_repo_files(repo, revision=revision))
    ggufs = first_parts(path for path in files if path.endswith(".gguf"))
    if len(ggufs) != 1:
        found = f"the GGUF files {', '.join(ggufs)}: name one, as {repo}:{ggufs[0]}" if ggufs else "no GGUF file"
        raise ModelLoadError(f"hub model {repo!r} has no safetensors and {found}")
    return _download_gguf(name, repo, ggufs[0], revision)


def _download_gguf(name: str, repo: str, file: str, revision: str | None) -> Path:
    """Download all parts of the file into one folder."""
    hub, parts = _hub(name), part_names(file)
    paths = _ask(name, lambda: [hub.hf_hub_download(repo, part, revision=revision) for part in parts])
    return Path(paths[0])


def download_config(name: str, revision: str | None) -> Path:
    """A folder with everything but the weights: for dummy weights, or for another model's tokenizer."""
    (repo, _), hub = _parsed(name), _hub(name)
    return Path(_ask(name, lambda: hub.snapshot_download(repo, revision=revision, allow_patterns=_SMALL_FILES)))


def _parsed(name: str) -> tuple[str, str | None]:
    """The repository, and the file where one is named."""
    match = _NAME.fullmatch(name)
    assert match, f"{name!r} must be checked with is_hub_name first"
    return match["repo"], match["file"]


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ModelLoadError(
            f"{name!r} is neither a file nor a folder here, and looking on the hub needs `pip install huggingface_hub`"
        ) from None
    return huggingface_hub


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, PACKAGED_MODELS, 1)
    return f"did you mean {close[0]!r}? Or " if close else ""


def _ask(name: str, request: Callable[[], T]) -> T:
    """Turns the dozen kinds of errors that the hub library raises (names, licences, revisions, networks) into one."""
    try:
        return request()
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelLoadError(
            f"model {name!r} is neither a file, a folder nor a packaged model here, and the hub did not provide it: "
            f"{reason}; {_meant(name)}check the network, the name, `hf auth login` for gated models, or download it "
            "to a folder"
        ) from error
