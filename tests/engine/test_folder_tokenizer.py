"""Tokenizers from Hugging Face folders, new and old, against transformers where it reads them too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from octavo.engine.folder_tokenizer import tokenizer_from_folder
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import TokenizerError
from tests.engine import tokenizers

TEXT = "hello wörld </s> plain € <s>"


def write_folder(folder: Path, encoder: Any = None, **settings: Any) -> Path:
    (encoder or tokenizers.byte_level()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.byte_level(), bos_token="<s>", eos_token="</s>", chat_template="{{ bos_token }}x"
    )
    saved.save_pretrained(tmp_path)
    tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
    assert tokenizer.encode(TEXT) == saved.encode(TEXT)
    assert tokenizer.bos_token_id == saved.bos_token_id
    assert tokenizer.eos_token_id == saved.eos_token_id
    assert tokenizer.vocab_size == len(saved)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}]) == "<s>x"


def test_the_older_two_files_of_byte_level_bpe(tmp_path: Path) -> None:
    """As OPT ships them: special tokens in the vocabulary, and one of them put before every text."""
    encoder = tokenizers.byte_level()
    encoder.model.save(str(tmp_path))
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"</s>": len(vocab)}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    special = {"bos_token": {"content": "</s>"}, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
    ids = tokenizer.encode("hello wörld")
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == len(vocab)
    assert ids[1:] == encoder.encode("hello wörld").ids
    assert tokenizer.decode(ids) == "hello wörld"


@pytest.mark.parametrize(
    ("in_file", "settings", "expected"),
    [
        (False, {}, "x"),
        (False, {"add_bos_token": True}, "<s>x"),
        (False, {"add_bos_token": True, "add_eos_token": True}, "<s>x</s>"),
        (True, {}, "<s>x"),
        (True, {"add_bos_token": True}, "<s>x"),
        (True, {"add_bos_token": False}, "x"),
        (True, {"add_eos_token": True}, "<s>x</s>"),
    ],
)
def test_ends_are_those_of_the_file_unless_overruled(
    tmp_path: Path, in_file: bool, settings: dict[str, bool], expected: str
) -> None:
    encoder = tokenizers.byte_level()
    if in_file:
        bos = encoder.token_to_id("<s>")
        encoder.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    write_folder(tmp_path, encoder, bos_token="<s>", eos_token="</s>", **settings)
    tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
    assert tokenizer.decode(tokenizer.encode("x"), skip_special_tokens=False) == expected


def test_a_saved_limit_does_not_cut_prompts(tmp_path: Path) -> None:
    encoder = tokenizers.byte_level()
    encoder.enable_truncation(3)
    encoder.enable_padding(length=10)
    tokenizer = Tokenizer(tokenizer_from_folder(write_folder(tmp_path, encoder)))
    assert len(tokenizer.encode("abcdef")) == 6


def test_tokens_that_only_the_settings_list_are_added(tmp_path: Path) -> None:
    size = tokenizers.byte_level().get_vocab_size()
    listed = {str(size): {"content": "<|think|>", "special": True, "normalized": False}}
    tokenizer = Tokenizer(tokenizer_from_folder(write_folder(tmp_path, added_tokens_decoder=listed)))
    assert tokenizer.encode("<|think|>") == [size]
    wrong = {str(size + 5): {"content": "<|think|>"}}
    with pytest.raises(TokenizerError, match=rf"'<\|think\|>' should have id {size + 5}, but gets {size}"):
        tokenizer_from_folder(write_folder(tmp_path, added_tokens_decoder=wrong))


def test_templates_from_every_place(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    write_folder(tmp_path, chat_template=listed)
    assert tokenizer_from_folder(tmp_path).chat_templates == {"default": "a", "rag": "b"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "c"}')
    assert tokenizer_from_folder(tmp_path).chat_templates["default"] == "c"
    (tmp_path / "chat_template.jinja").write_text("d")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("e")
    assert tokenizer_from_folder(tmp_path).chat_templates == {"default": "d", "rag": "b", "tool_use": "e"}


def test_broken_and_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json; pass tokenizer= a folder"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json; transformers writes one from tokenizer.model"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="the tokenizer's files are broken"):
        tokenizer_from_folder(tmp_path)
    write_folder(tmp_path, add_bos_token=True)
    with pytest.raises(TokenizerError, match="add_bos_token is true, but there is no bos_token"):
        tokenizer_from_folder(tmp_path)
