"""Checked tokenizer settings from the JSON files beside a folder's vocabulary.

tokenizer_config.json     which tokens begin and end a text, and whether they are added; special and added tokens
special_tokens_map.json   the same tokens, in older folders
added_tokens.json         added tokens by text, in older folders
chat_template.json        the chat template, in older folders
config.json               the kind of model, for vocabularies that do not say how text is split

A file is not trusted: a value of the wrong type raises ModelLoadError with file, key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from octavo.models.config_file import ConfigFile, read_optional_json

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """roles: tokens by bos_token and so on. more_special: special tokens without a role. added: the id that each token
    should have. adds_bos and the like: None where not stated. model_type, tokenizer_class: "" where unknown."""

    path: Path
    roles: Mapping[str, str]
    more_special: tuple[str, ...]
    added: Mapping[int, AddedToken]
    adds_bos: bool | None
    adds_eos: bool | None
    adds_prefix_space: bool | None
    is_legacy: bool
    model_type: str
    tokenizer_class: str
    chat_templates: Mapping[str, str]


def read_settings(folder: Path) -> TokenizerSettings:
    file, older = _file(folder, "tokenizer_config.json"), _file(folder, "special_tokens_map.json")
    model = read_optional_json(folder / "config.json")
    roles = {role: _token(file, role) or _token(older, role) for role in _ROLES}
    return TokenizerSettings(
        path=file.path,
        roles={role: token for role, token in roles.items() if token},
        more_special=tuple(dict.fromkeys([*_more_special(file), *_more_special(older)])),
        added=_added_by_text(_file(folder, "added_tokens.json")) | _added_by_id(file),
        adds_bos=_optional_flag(file, "add_bos_token"),
        adds_eos=_optional_flag(file, "add_eos_token"),
        adds_prefix_space=_optional_flag(file, "add_prefix_space"),
        is_legacy=file.flag("legacy", True),
        model_type=_name(model.get("model_type")),
        tokenizer_class=_name(file.values.get("tokenizer_class")).removesuffix("Fast"),
        chat_templates=_chat_templates(file, _file(folder, "chat_template.json")),
    )


def _file(folder: Path, name: str) -> ConfigFile:
    """Empty if there is no such file."""
    return ConfigFile(folder / name, read_optional_json(folder / name))


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _optional_flag(file: ConfigFile, key: str) -> bool | None:
    return file.flag(key, False) if file.has(key) else None


def _token(file: ConfigFile, key: str) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    if isinstance(file.values.get(key), dict):
        return _token(file.inside(key), "content")
    text = file.optional_text(key)
    if text is not None and not _is_whole(text):
        raise file.wrong(key, "whole characters")
    return text


def _is_whole(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON may hold halves of surrogate pairs, which no tokenizer knows."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _more_special(file: ConfigFile) -> list[str]:
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = file.values.get(key)
        listed = list(value.values()) if isinstance(value, dict) else file.items(key)
        each = ConfigFile(file.path, {f"{key}[{index}]": one for index, one in enumerate(listed)})
        for name in each.values:
            text = _token(each, name)
            if text is None:
                raise each.wrong(name, "a token, as text or as an object with a content")
            found += [text] if text else []
    return found


def _added_by_id(file: ConfigFile) -> dict[int, AddedToken]:
    listed = file.inside("added_tokens_decoder")
    if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in listed.values):
        raise file.wrong("added_tokens_decoder", "token ids as keys")
    added: dict[int, AddedToken] = {}
    for key in listed.values:
        flags = ConfigFile(file.path, {}) if isinstance(listed.values[key], str) else listed.inside(key)
        text = _token(listed, key)
        if text:
            added[int(key)] = AddedToken(text, **{name: flags.flag(name, False) for name in _FLAGS if flags.has(name)})
    return added


def _added_by_text(file: ConfigFile) -> dict[int, AddedToken]:
    for text in file.values:
        if not _is_whole(text):
            raise file.wrong(text, "whole characters as keys")
    ids = {file.size(text, smallest=0): text for text in file.values if text}
    return {token_id: AddedToken(text, normalized=False) for token_id, text in ids.items()}


def _chat_templates(file: ConfigFile, older: ConfigFile) -> dict[str, str]:
    templates: dict[str, str] = {}
    if isinstance(file.values.get("chat_template"), list):
        listed = {f"chat_template[{index}]": one for index, one in enumerate(file.items("chat_template"))}
        for key in listed:
            named = ConfigFile(file.path, listed).inside(key)
            templates[named.text("name")] = named.text("template")
    elif (given := file.optional_text("chat_template")) is not None:
        templates["default"] = given
    if (given := older.optional_text("chat_template")) is not None:
        templates["default"] = given
    return templates
