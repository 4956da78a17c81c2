"""The tokenizer in a Hugging Face folder.

tokenizer.json            the whole of it, as the `tokenizers` library saves it; or
vocab.json, merges.txt    the older form of byte-level BPE (OPT, GPT-2)
tokenizer_config.json     which tokens begin and end a text, and whether they are added; chat templates
special_tokens_map.json   the same tokens, in older folders
chat_template.jinja       the chat template, in newer folders; additional_chat_templates/*.jinja are more
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.engine.tokenizer_parts import TokenizerParts, set_ends
from octavo.engine.tokenizers_errors import naming
from octavo.errors import TokenizerError
from octavo.models.config_file import ConfigFile
from octavo.models.json_file import read_optional_json
from octavo.models.regular_file import is_there, open_regular, read_text
from octavo.models.shown import shown

_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_PROBE = "a\u00e9\u6f22 1\n"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_folder(folder: Path) -> TokenizerParts:
    settings = _file(folder, "tokenizer_config.json")
    special_tokens = _special_tokens(folder, settings)
    with naming(f"{folder}: the tokenizer's files are broken", "download them again"):
        encoder = _read_encoder(folder)
        encoder.no_truncation()  # a saved limit would cut prompts without a word
        encoder.no_padding()
        _add_missing_tokens(encoder, settings, special_tokens)
        _apply_ends(encoder, settings, special_tokens)
        encoder.decode(encoder.encode(_PROBE).ids)  # what panics does so now, not with the first request
    return TokenizerParts(encoder, special_tokens, _chat_templates(folder, settings))


def _file(folder: Path, name: str) -> ConfigFile:
    """An object without keys where there is no such file."""
    return ConfigFile(folder / name, read_optional_json(folder / name))


def _read_encoder(folder: Path) -> Tokenizer:
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if is_there(whole):
        return Tokenizer.from_str(read_text(whole))
    if is_there(vocab) and is_there(merges):
        for path in (vocab, merges):
            open_regular(path).close()  # the library would wait for a pipe
        encoder = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = decoders.ByteLevel()
        return encoder
    hint = ""
    if (folder / "tokenizer.model").is_file():
        hint = "; transformers writes one from tokenizer.model: AutoTokenizer.from_pretrained(f).save_pretrained(f)"
    raise TokenizerError(
        f"{folder} has no tokenizer.json{hint}; pass tokenizer= a folder that has one, or set skip_tokenizer_init"
    )


def _special_tokens(folder: Path, settings: ConfigFile) -> dict[str, str]:
    older = _file(folder, "special_tokens_map.json")
    tokens = {role: _token(settings, role) or _token(older, role) for role in _ROLES}
    return {role: token for role, token in tokens.items() if token}


def _token(file: ConfigFile, key: str) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    if isinstance(file.values.get(key), dict):
        return _token(file.inside(key), "content")
    text = file.optional_text(key)
    if text is not None and not _is_encodable(text):
        raise file.wrong(key, "whole characters")
    return text


def _is_encodable(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which is no character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _add_missing_tokens(encoder: Tokenizer, settings: ConfigFile, special_tokens: dict[str, str]) -> None:
    """Tokens that the settings list and tokenizer.json does not have; each must get the id it is listed with."""
    listed = settings.inside("added_tokens_decoder")
    if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in listed.values):
        raise settings.wrong("added_tokens_decoder", "token ids as keys")
    known_ids = set(encoder.get_added_tokens_decoder())
    for key in sorted(listed.values, key=int):
        flags = listed.inside(key)
        text = _token(flags, "content")
        if text is None or int(key) in known_ids:
            continue
        options = {name: flags.flag(name, False) for name in _TOKEN_FLAGS if flags.has(name)}
        encoder.add_tokens([AddedToken(text, **options)])
        if encoder.token_to_id(text) != int(key):
            raise TokenizerError(
                f"{flags.path}: added token {shown(text)} should have id {key}, but gets {encoder.token_to_id(text)}"
            )
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    missing = sorted(set(special_tokens.values()) - known)
    encoder.add_special_tokens([token for token in missing if encoder.token_to_id(token) is not None])


def _apply_ends(encoder: Tokenizer, settings: ConfigFile, special_tokens: dict[str, str]) -> None:
    """tokenizer.json says how texts begin and end; add_bos_token and add_eos_token, where given, overrule it."""
    ids = encoder.encode("").ids
    wanted: dict[str, str | None] = {}
    differs = False
    for role, place in (("bos", slice(0, 1)), ("eos", slice(-1, None))):
        token = special_tokens.get(f"{role}_token")
        is_added = token is not None and ids[place] == [encoder.token_to_id(token)]
        should = settings.flag(f"add_{role}_token", is_added)
        if should and (token is None or encoder.token_to_id(token) is None):
            raise TokenizerError(
                f"{settings.path}: add_{role}_token is true, but there is no {role}_token in the vocabulary"
            )
        differs |= should != is_added
        wanted[role] = token if should else None
    if differs:
        set_ends(encoder, wanted["bos"], wanted["eos"])


def _chat_templates(folder: Path, settings: ConfigFile) -> dict[str, str]:
    templates: dict[str, str] = {}
    if isinstance(settings.values.get("chat_template"), list):
        for index, entry in enumerate(settings.items("chat_template")):
            named = ConfigFile(settings.path, {f"chat_template[{index}]": entry}).inside(f"chat_template[{index}]")
            templates[named.text("name")] = named.text("template")
    elif (given := settings.optional_text("chat_template")) is not None:
        templates["default"] = given
    if (older := _file(folder, "chat_template.json").optional_text("chat_template")) is not None:
        templates["default"] = older
    if is_there(folder / "chat_template.jinja"):
        templates["default"] = read_text(folder / "chat_template.jinja")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        templates[path.stem] = read_text(path)
    return templates
