"""Tokenizers from Hugging Face folders, new and old, against transformers where it reads them too."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from octavo.errors import ModelLoadError, OctavoError, TokenizerError
from octavo.text.folder_tokenizer import tokenizer_from_folder
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_parts import TokenizerParts
from tests.text import tokenizers

TEXT = "hello wörld </s> plain € <s>"


def write_folder(folder: Path, encoder: Any = None, **config: Any) -> Path:
    (encoder or tokenizers.byte_level()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
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


def write_two_files(folder: Path, model: dict[str, Any], **config: Any) -> Path:
    tokenizers.byte_level().model.save(str(folder))
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("model", "settings", "cuts_digits", "composes"),
    [
        ({"model_type": "qwen2"}, {}, True, True),
        ({"model_type": "qwen3"}, {"tokenizer_class": "Qwen2Tokenizer"}, True, True),
        ({}, {"tokenizer_class": "Qwen2TokenizerFast"}, True, True),
        ({"model_type": "starcoder2"}, {"tokenizer_class": "no such"}, True, False),
        ({"model_type": "gpt2"}, {}, False, False),
        ({"model_type": "opt"}, {"tokenizer_class": "GPT2Tokenizer"}, False, False),
    ],
)
def test_two_files_are_cut_as_the_kind_of_model_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    model: dict[str, str],
    settings: dict[str, str],
    cuts_digits: bool,
    composes: bool,
) -> None:
    parts = tokenizer_from_folder(write_two_files(tmp_path, model, **settings))
    assert (len(parts.encoder.pre_tokenizer.pre_tokenize_str("123")) == 3) == cuts_digits
    assert (Tokenizer(parts).encode("e\u0301") == Tokenizer(parts).encode("é")) == composes
    assert not caplog.records


@pytest.mark.parametrize("model", [{}, {"model_type": "llama"}, {"model_type": ["qwen2"]}])
def test_two_files_of_an_unknown_kind_are_taken_for_gpt_2s_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: dict[str, Any]
) -> None:
    tokenizer = Tokenizer(tokenizer_from_folder(write_two_files(tmp_path, model)))
    assert tokenizer.encode("hello 12") == tokenizers.byte_level().encode("hello 12").ids
    assert "does not say how its tokenizer cuts text" in caplog.text


def test_special_tokens_without_a_role(tmp_path: Path) -> None:
    more = ["hello", {"content": "he"}, "not in the vocabulary"]
    tokenizer = Tokenizer(tokenizer_from_folder(write_folder(tmp_path, additional_special_tokens=more)))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello he ll")) == ["hello", "Ġ", "he", "Ġ", "ll"]
    assert tokenizer.decode(tokenizer.encode("hello he ll")) == "  ll"
    assert tokenizer.vocab_size == tokenizers.byte_level().get_vocab_size()
    (tmp_path / "tokenizer_config.json").write_text('{"extra_special_tokens": {"image_token": "ll"}}')
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["he"]}')
    assert Tokenizer(tokenizer_from_folder(tmp_path)).decode(tokenizer.encode("he ll x")) == "  x"


def test_a_token_that_was_added_and_is_special_too(tmp_path: Path) -> None:
    write_folder(tmp_path, additional_special_tokens=["plain €"])
    tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
    ids = tokenizer.encode("he plain €")
    assert tokenizer.decode(ids) == "he "
    assert tokenizer.decode(ids, skip_special_tokens=False) == "he plain €"


def test_added_tokens_of_older_folders(tmp_path: Path) -> None:
    size = tokenizers.byte_level().get_vocab_size()
    write_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<a>": size}))
    tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
    assert tokenizer.encode("<a><b>") == [size, size + 1]


def prefixed(kind: str) -> Any:
    if kind == "byte-level":
        encoder = tokenizers.byte_level()
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return encoder
    return tokenizers.metaspace() if kind == "metaspace" else tokenizers.byte_fallback()


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "byte-fallback"])
def test_the_space_before_a_text_is_the_settings(tmp_path: Path, kind: str) -> None:
    encoder = prefixed(kind)
    same = Tokenizer(tokenizer_from_folder(write_folder(tmp_path, encoder, add_prefix_space=True)))
    bare = Tokenizer(tokenizer_from_folder(write_folder(tmp_path, encoder, add_prefix_space=False)))
    assert same.encode("ab") == encoder.encode("ab").ids
    assert bare.convert_ids_to_tokens(bare.encode("ab")) in (["a", "b"], ["ab"])
    assert bare.decode(bare.encode("ab a")) == "ab a"
    assert bare.decode(bare.encode(" ab")) == " ab"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is .1.; allowed: an object"),
        ({"added_tokens_decoder": {"x": "a"}}, "added_tokens_decoder is .*; allowed: token ids as keys"),
        ({"added_tokens_decoder": {"9" * 30: "a"}}, "added_tokens_decoder is .*; allowed: token ids as keys"),
        ({"added_tokens_decoder": {"٣": "a"}}, "added_tokens_decoder is .*; allowed: token ids as keys"),
        ({"added_tokens_decoder": {"300": "\ud800"}}, "added_tokens_decoder.300 is .*; allowed: whole characters"),
        ({"added_tokens_decoder": {"300": 4}}, "added_tokens_decoder.300 is 4; allowed: an object"),
        (
            {"added_tokens_decoder": {"300": {"content": "a", "lstrip": "no"}}},
            "added_tokens_decoder.300.lstrip is 'no'; allowed: true and false",
        ),
        ({"additional_special_tokens": "<s>"}, "additional_special_tokens is '<s>'; allowed: a list"),
        ({"additional_special_tokens": [None]}, r"additional_special_tokens\[0\] is None; allowed: a token, as text"),
        ({"additional_special_tokens": [[]]}, r"additional_special_tokens\[0\] is \[\]; allowed: a text"),
        (
            {"add_bos_token": True, "bos_token": "<x>"},
            "add_bos_token is true, but there is no bos_token '<x>' in the voc",
        ),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; allowed: true and false"),
        ({"add_prefix_space": 1}, "add_prefix_space is 1; allowed: true and false"),
        ({"legacy": []}, r"legacy is \[\]; allowed: true and false"),
        ({"unk_token": 3}, "unk_token is 3; allowed: a text"),
        ({"chat_template": [{"name": "a"}]}, r"key 'chat_template\[0\].template' is missing"),
        ({"chat_template": [7]}, r"chat_template\[0\] is 7; allowed: an object"),
        ({"chat_template": 7}, "chat_template is 7; allowed: a text"),
    ],
)
def test_settings_of_the_wrong_type_are_named(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    write_folder(tmp_path, **settings)
    with pytest.raises(OctavoError, match=f"tokenizer_config.json: {problem}"):
        tokenizer_from_folder(tmp_path)


SETTINGS = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>"},
    "add_bos_token": True,
    "add_prefix_space": False,
    "legacy": False,
    "tokenizer_class": "LlamaTokenizer",
    "additional_special_tokens": ["<s>", "hello"],
    "added_tokens_decoder": {"256": {"content": "he", "lstrip": False}},
    "chat_template": [{"name": "default", "template": "x"}],
}
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(["<s>", "\ud800"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["content", "special", "lstrip", "1", "300"]), st.text()), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*SETTINGS, "model_type"]), value=JSON, source=st.sampled_from(["whole", "two"]))
def test_no_settings_do_more_than_raise(tmp_path: Path, key: str, value: Any, source: str) -> None:
    if source == "whole":
        write_folder(tmp_path, **SETTINGS | {key: value})
    else:
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        write_two_files(tmp_path, {key: value}, **SETTINGS | {key: value})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({key: value}))
    with suppress(OctavoError):
        tokenizer = Tokenizer(tokenizer_from_folder(tmp_path))
        tokenizer.decode(tokenizer.encode("hello <s> x"))


def test_older_files_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<a>": "12"}')
    with pytest.raises(ModelLoadError, match=r"added_tokens.json: <a> is '12'; allowed: 0 to"):
        tokenizer_from_folder(tmp_path)


def spoilt(**parts: Any) -> str:
    """A tokenizer.json that makes the library panic: what it raises is not an Exception."""
    return json.dumps(json.loads(tokenizers.byte_level().to_str()) | parts)


def test_a_breakdown_of_the_library_is_the_files_fault(tmp_path: Path) -> None:
    write_folder(tmp_path)
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "abc"}
    (tmp_path / "tokenizer.json").write_text(spoilt(model=model, added_tokens=[]))
    with pytest.raises(TokenizerError, match=r"files are broken .*out of range"):
        tokenizer_from_folder(tmp_path)
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ends = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(spoilt(post_processor=ends))
    with pytest.raises(TokenizerError, match=r"files are broken .*no entry found"):
        tokenizer_from_folder(tmp_path)


def test_a_breakdown_at_one_text_is_that_requests_fault() -> None:
    encoder = tokenizers.byte_level()
    trie = bytes([16, 0, 0, 0, *range(1, 17)])
    encoder.normalizer = normalizers.Precompiled(trie + b"a\0b\0")
    tokenizer = Tokenizer(TokenizerParts(encoder))
    with pytest.raises(TokenizerError, match="the tokenizer's library failed on this text: index out of bounds"):
        tokenizer.encode("hello")


def test_broken_and_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json, no vocab.json .*; pass tokenizer= a folder"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"tokenizer.model is cut off .*; download it again"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="the tokenizer's files are broken"):
        tokenizer_from_folder(tmp_path)
    write_folder(tmp_path, add_bos_token=True)
    with pytest.raises(TokenizerError, match="add_bos_token is true, but there is no bos_token"):
        tokenizer_from_folder(tmp_path)
