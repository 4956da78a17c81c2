"""A tiny model with a tokenizer that spells: a token for each printable character, and for some words of JSON."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.engine.asked_grammars import grammar_vocabulary
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.vocabulary import Vocabulary
from octavo.text.folder_tokenizer import tokenizer_from_folder
from octavo.text.tokenizer import Tokenizer as OwnTokenizer
from tests.conftest import TinyFolder

END = 2
_MERGES = ["n a", "m e", "na me", "a g", "ag e", '" :', '{ "', 'name ":', 'age ":', "1 2", "Ġ Ġ", "t r", "u e", "tr ue"]


def write_tokenizer(folder: Path, *, has_all_bytes: bool = False) -> None:
    characters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "ĉ", "Ã", "©"]
    if has_all_bytes:
        characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *characters, *(merge.replace(" ", "") for merge in _MERGES)]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES)]
    encoder = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    encoder.save(str(folder / "tokenizer.json"))


def spelling_model(tiny_folder: TinyFolder, to: Path, name: str = "llama", **changes: Any) -> Path:
    """The folder of a tiny model that can spell. changes: of its arguments in TINY."""
    folder = to / f"spelling-{name}"
    shutil.copytree(tiny_folder(name, **changes), folder)
    write_tokenizer(folder)
    return folder


def byte_vocabulary(folder: Path) -> Vocabulary:
    """One that can also spell every byte, with ids that no text has at its end."""
    write_tokenizer(folder, has_all_bytes=True)
    return grammar_vocabulary(OwnTokenizer(tokenizer_from_folder(folder)), 300, [END])


def byte_compiler(folder: Path) -> GrammarCompiler:
    return GrammarCompiler(lambda: byte_vocabulary(folder))
