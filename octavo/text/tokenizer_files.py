"""The tokenizer of a folder that is written: files copied from another folder, or made from a GGUF file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from octavo.models.located import TokenizerSource
from octavo.text.gguf_tokenizer import tokenizer_from_gguf

#: besides the tokenizer: generation settings, processors of images, licences
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "additional_chat_templates/*.jinja")
_REPLACED = ("config.json", "*.safetensors.index.json")


def write_tokenizer(source: TokenizerSource, folder: Path) -> None:
    """Raises TokenizerError."""
    if isinstance(source, Path):
        _copy(source, folder)
        return
    parts = tokenizer_from_gguf(source)
    parts.encoder.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **parts.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    for name, template in parts.chat_templates.items():
        path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def _copy(source: Path, folder: Path) -> None:
    for path in sorted({path for pattern in _COPIED for path in source.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in _REPLACED):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
