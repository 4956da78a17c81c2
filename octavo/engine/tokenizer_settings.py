"""What the files beside a folder's vocabulary say of its tokenizer, checked.

tokenizer_config.json     which tokens begin and end a text, and whether they are added; special and added tokens
special_tokens_map.json   the same tokens, in older folders
added_tokens.json         added tokens by text, in older folders
config.json               what kind of model it is, for vocabularies that do not say how text is cut

A file is not trusted: what is of another type than it should be raises TokenizerError with file, key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken

from octavo.errors import TokenizerError
from octavo.models.json_file import read_optional_json

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_MAX_ID = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """roles: tokens by bos_token and so on. more_special: special tokens without a role. added: the id that each token
    should have. adds_bos and the like: None where nothing is said. model_type, tokenizer_class: "" where unknown."""

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
    chat_template: Any


def read_settings(folder: Path) -> TokenizerSettings:
    path = folder / "tokenizer_config.json"
    file = _File(path, read_optional_json(path))
    older = _File(folder / "special_tokens_map.json", read_optional_json(folder / "special_tokens_map.json"))
    model = read_optional_json(folder / "config.json")
    roles = {role: file.token(role) or older.token(role) for role in _ROLES}
    return TokenizerSettings(
        path=path,
        roles={role: token for role, token in roles.items() if token},
        more_special=tuple(dict.fromkeys([*file.special_tokens(), *older.special_tokens()])),
        added=_added_by_text(folder / "added_tokens.json") | file.added_tokens(),
        adds_bos=file.flag("add_bos_token"),
        adds_eos=file.flag("add_eos_token"),
        adds_prefix_space=file.flag("add_prefix_space"),
        is_legacy=file.flag("legacy") is not False,
        model_type=_text(model.get("model_type")) or "",
        tokenizer_class=(_text(file.content.get("tokenizer_class")) or "").removesuffix("Fast"),
        chat_template=file.content.get("chat_template"),
    )


class _File:
    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self.content = content

    def token(self, key: str) -> str | None:
        return _text(self.content.get(key))

    def flag(self, key: str) -> bool | None:
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            self._fail(key, value, "true, false and null")
        return value

    def special_tokens(self) -> list[str]:
        found: list[str] = []
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = self.content.get(key) or []
            listed = list(value.values()) if isinstance(value, dict) else value
            if not isinstance(listed, list):
                self._fail(key, value, "a list of tokens")
            for one in listed:
                text = _text(one)
                if text is None:
                    self._fail(key, one, "tokens, as text or as objects with a content")
                found += [text] if text else []
        return found

    def added_tokens(self) -> dict[int, AddedToken]:
        listed = self.content.get("added_tokens_decoder") or {}
        if not isinstance(listed, dict):
            self._fail("added_tokens_decoder", listed, "an object of tokens by id")
        return dict(self._added(key, value) for key, value in listed.items() if _text(value) != "")

    def _added(self, key: str, value: Any) -> tuple[int, AddedToken]:
        where, text = f"added_tokens_decoder.{key[:20]}", _text(value)
        if not (key.isascii() and key.isdigit() and len(key) < 11 and int(key) < _MAX_ID):
            self._fail("added_tokens_decoder", key, "ids as keys")
        if text is None or not _is_whole(text):
            self._fail(where, value, "an object with a content")
        flags = value if isinstance(value, dict) else {}
        for name in (*_FLAGS, "special"):
            if not isinstance(flags.get(name, False), bool):
                self._fail(f"{where}.{name}", flags[name], "true and false")
        options = {name: flags[name] for name in _FLAGS if name in flags}
        return int(key), AddedToken(text, special=flags.get("special", False), **options)

    def _fail(self, key: str, value: Any, allowed: str) -> NoReturn:
        raise TokenizerError(f"{self._path}: {key} is {repr(value)[:100]}, allowed: {allowed}")


def _added_by_text(path: Path) -> dict[int, AddedToken]:
    listed = read_optional_json(path)
    for text, token_id in listed.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < _MAX_ID:
            raise TokenizerError(f"{path}: {text[:100]!r} is {repr(token_id)[:100]}, allowed: ids from 0 up")
        if not _is_whole(text):
            raise TokenizerError(f"{path}: {text[:100]!r} holds half of a surrogate pair, allowed: whole characters")
    return {token_id: AddedToken(text, normalized=False) for text, token_id in listed.items() if text}


def _is_whole(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON may hold halves of surrogate pairs, which no tokenizer knows."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _text(token: Any) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
