"""The tokenizer in a Hugging Face folder.

tokenizer.json            the whole of it, as the `tokenizers` library saves it; or
vocab.json, merges.txt    the older form of byte-level BPE (OPT, GPT-2)
tokenizer_config.json     which tokens begin and end a text, and whether they are added; chat templates
special_tokens_map.json   the same tokens, in older folders
chat_template.jinja       the chat template, in newer folders; additional_chat_templates/*.jinja are more
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.engine.tokenizer_parts import TokenizerParts, set_ends
from octavo.errors import TokenizerError
from octavo.models.json_file import read_optional_json

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_folder(folder: Path) -> TokenizerParts:
    settings = read_optional_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, settings)
    encoder = _read_encoder(folder)
    encoder.no_truncation()  # a saved limit would cut prompts without a word
    encoder.no_padding()
    _add_missing_tokens(folder, encoder, settings, special_tokens)
    _apply_ends(encoder, settings, special_tokens)
    return TokenizerParts(encoder, special_tokens, _chat_templates(folder, settings))


def _read_encoder(folder: Path) -> Tokenizer:
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        if vocab.is_file() and merges.is_file():
            encoder = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
            encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            encoder.decoder = decoders.ByteLevel()
            return encoder
    except Exception as error:  # the library has no error class of its own
        raise TokenizerError(f"{folder}: the tokenizer's files are broken ({error}); download them again") from error
    hint = ""
    if (folder / "tokenizer.model").is_file():
        hint = "; transformers writes one from tokenizer.model: AutoTokenizer.from_pretrained(f).save_pretrained(f)"
    raise TokenizerError(
        f"{folder} has no tokenizer.json{hint}; pass tokenizer= a folder that has one, or set skip_tokenizer_init"
    )


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    older = read_optional_json(folder / "special_tokens_map.json")
    tokens = {role: _text(settings.get(role)) or _text(older.get(role)) for role in _ROLES}
    return {role: token for role, token in tokens.items() if token}


def _text(token: Any) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_missing_tokens(
    folder: Path, encoder: Tokenizer, settings: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """Tokens that the settings list and tokenizer.json does not have; each must get the id it is listed with."""
    listed = settings.get("added_tokens_decoder") or {}
    known_ids = set(encoder.get_added_tokens_decoder())
    for key in sorted(listed, key=int):
        text, flags = _text(listed[key]), listed[key]
        if text is None or int(key) in known_ids:
            continue
        options = {name: flags[name] for name in ("lstrip", "rstrip", "single_word", "normalized") if name in flags}
        encoder.add_tokens([AddedToken(text, special=bool(flags.get("special")), **options)])
        if encoder.token_to_id(text) != int(key):
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: added token {text!r} should have id {key}, "
                f"but gets {encoder.token_to_id(text)}"
            )
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    missing = sorted(set(special_tokens.values()) - known)
    encoder.add_special_tokens([token for token in missing if encoder.token_to_id(token) is not None])


def _apply_ends(encoder: Tokenizer, settings: dict[str, Any], special_tokens: dict[str, str]) -> None:
    """tokenizer.json says how texts begin and end; add_bos_token and add_eos_token, where given, overrule it."""
    ids = encoder.encode("").ids
    wanted: dict[str, str | None] = {}
    differs = False
    for role, place in (("bos", slice(0, 1)), ("eos", slice(-1, None))):
        token = special_tokens.get(f"{role}_token")
        is_added = token is not None and ids[place] == [encoder.token_to_id(token)]
        should = settings.get(f"add_{role}_token")
        should = is_added if should is None else bool(should)
        if should and token is None:
            raise TokenizerError(f"tokenizer_config.json: add_{role}_token is true, but there is no {role}_token")
        differs |= should != is_added
        wanted[role] = token if should else None
    if differs:
        set_ends(encoder, wanted["bos"], wanted["eos"])


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    given = settings.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates |= {entry["name"]: entry["template"] for entry in given if {"name", "template"} <= set(entry)}
    older = read_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(older, str):
        templates["default"] = older
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _read_text(folder / "chat_template.jinja")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        templates[path.stem] = _read_text(path)
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None
