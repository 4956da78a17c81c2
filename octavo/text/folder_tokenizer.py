"""The tokenizer in a Hugging Face folder.

tokenizer.json            the whole tokenizer, as the `tokenizers` library saves it; or
vocab.json, merges.txt    the older form of byte-level BPE (OPT, GPT-2, Qwen); or
tokenizer.model           SentencePiece's own file (Llama 2, Mistral, Gemma); or
tiktoken.model            tiktoken's (Kimi K2)
tokenizer_config.json     and others: special, added, begin and end tokens; see tokenizer_settings.py
chat_template.jinja       the chat template, in newer folders; additional_chat_templates/*.jinja are more
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.errors import TokenizerError
from octavo.models.regular_file import is_there, open_regular, read_text
from octavo.observe.logging import LOGGER
from octavo.shown import shown
from octavo.text import tiktoken_model
from octavo.text.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from octavo.text.sentencepiece_tokenizer import (
    Pieces,
    SpacePrefix,
    bpe_encoder,
    mark_tokens,
    unigram_encoder,
    write_spaces,
)
from octavo.text.text_cuts import cut_of_kind, cutter, text_normalizer
from octavo.text.tokenizer_parts import TokenizerParts, collector_off, naming, set_ends
from octavo.text.tokenizer_settings import TokenizerSettings, read_settings

#: encoded and decoded once with every tokenizer
_PROBE = "a\u00e9\u6f22 1\n"
#: names of splitting rules, by transformers' tokenizer class: config.json's model_type alone does not always tell
_CUTS_BY_CLASS = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2"}


def tokenizer_from_folder(folder: Path) -> TokenizerParts:
    settings = read_settings(folder)
    with naming(f"{folder}: the tokenizer's files are broken", "download them again"):
        encoder, own_roles = _read_encoder(folder, settings)
        roles = {**own_roles, **settings.roles}
        encoder.no_truncation()  # a saved limit would silently truncate prompts
        encoder.no_padding()
        _add_missing_tokens(encoder, settings, roles.values())
        _apply_ends(encoder, settings, roles, is_sentencepiece=bool(own_roles))
        encoder.decode(encoder.encode(_PROBE).ids)  # panics here rather than in the first request
    return TokenizerParts(encoder, roles, _chat_templates(folder, settings))


def _read_encoder(folder: Path, settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, str]]:
    """The encoder, and the role tokens that its own file names."""
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if is_there(whole):
        encoder = Tokenizer.from_str(read_text(whole))
        _apply_prefix_space(encoder, settings.adds_prefix_space)
        return encoder, {}
    if is_there(vocab) and is_there(merges):
        for path in (vocab, merges):
            open_regular(path).close()  # the library would wait for a pipe
        return _byte_level(models.BPE.from_file(str(vocab), str(merges)), settings), {}
    if is_there(folder / "tokenizer.model"):
        model = read_sentencepiece_model(folder / "tokenizer.model")
        with collector_off():
            return _sentencepiece(model, settings), {f"{role}_token": text for role, text in model.roles.items()}
    if is_there(folder / tiktoken_model.FILE):
        with collector_off():
            return tiktoken_model.tiktoken_encoder(folder / tiktoken_model.FILE, settings.added), {}
    mistral = "; tekken.json is in Mistral's own format" if is_there(folder / "tekken.json") else ""
    raise TokenizerError(
        f"{folder} has no tokenizer.json, no vocab.json with merges.txt, no tokenizer.model and no "
        f"{tiktoken_model.FILE}{mistral}; pass tokenizer= a folder that has one of them, or set skip_tokenizer_init"
    )


def _byte_level(model: models.BPE, settings: TokenizerSettings) -> Tokenizer:
    encoder = Tokenizer(model)
    kind = settings.model_type
    name = _CUTS_BY_CLASS.get(settings.tokenizer_class) if kind not in ("llama", "mistral") else None
    name = name or cut_of_kind(kind, encoder.get_vocab_size())
    if name is None:
        LOGGER.warning(
            "%s does not say how its tokenizer cuts text, nor does its kind of model (model_type %r, "
            "tokenizer_class %r); taken for GPT-2's, which may be wrong: add a tokenizer.json",
            *(settings.path.parent, kind, settings.tokenizer_class),
        )
    name = name or "gpt-2"
    pre_tokenizer = cutter(name)
    assert pre_tokenizer is not None, "cut_of_kind returns known rules"
    if settings.adds_prefix_space and name == "gpt-2":
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder.pre_tokenizer = pre_tokenizer
    encoder.decoder = decoders.ByteLevel()
    if (normalizer := text_normalizer(name)) is not None:
        encoder.normalizer = normalizer
    return encoder


def _sentencepiece(model: SentencePieceModel, settings: TokenizerSettings) -> Tokenizer:
    pieces = Pieces(
        tokens=model.tokens,
        scores=model.scores,
        types=model.types,
        unknown=model.roles.get("unk"),
        raw=model.raw,
    )
    encoder = bpe_encoder(pieces) if model.kind == "bpe" else unigram_encoder(pieces)
    adds = model.adds_space_prefix if settings.adds_prefix_space is None else settings.adds_prefix_space
    prefix: SpacePrefix = ("always" if settings.is_legacy else "first") if adds else "never"
    write_spaces(encoder, prefix, model.character_map, removes_extra_spaces=model.removes_extra_spaces)
    listed = {token.content for token in settings.added.values()}  # added later, with their own flags
    unlisted = [[text for text in texts if text not in listed] for texts in (model.control, model.user_defined)]
    mark_tokens(encoder, *unlisted)
    return encoder


def _apply_prefix_space(encoder: Tokenizer, adds: bool | None) -> None:
    """Apply add_prefix_space where the settings override tokenizer.json."""
    if adds is None:
        return
    parts = {name: _state(getattr(encoder, name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
    changed = {name: _with_prefix_space(state, adds) for name, state in parts.items()}
    if changed == parts:
        return
    model = {"type": "BPE", "vocab": {}, "merges": []}
    shell = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **changed}))
    encoder.normalizer, encoder.pre_tokenizer, encoder.decoder = shell.normalizer, shell.pre_tokenizer, shell.decoder


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _with_prefix_space(state: Any, adds: bool) -> Any:
    """The same component, set to prepend a space or not, if it can."""
    if not isinstance(state, dict):
        return state
    for steps in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(state.get(steps), list):
            kept = [_with_prefix_space(step, adds) for step in state[steps]]
            return {**state, steps: [step for step in kept if step is not None]}
    kind = state.get("type")
    if kind == "ByteLevel" and state.get("add_prefix_space") is not None:
        return {**state, "add_prefix_space": adds}
    if kind == "Metaspace" and adds != (state.get("prepend_scheme") != "never"):
        return {**state, "prepend_scheme": "always" if adds else "never"}
    is_prefix = kind == "Prepend" or (kind == "Strip" and state.get("content") == " ")
    return None if is_prefix and not adds else state


def _add_missing_tokens(encoder: Tokenizer, settings: TokenizerSettings, roles: Iterable[str]) -> None:
    """Add tokens that the settings list and the encoder lacks; each must get its listed id."""
    known_ids = set(encoder.get_added_tokens_decoder())
    for token_id, token in sorted(settings.added.items()):
        if token_id in known_ids:
            continue
        encoder.add_tokens([token])
        if encoder.token_to_id(token.content) != token_id:
            raise TokenizerError(
                f"{settings.path}: added token {shown(token.content)} should have id {token_id}, "
                f"but gets {encoder.token_to_id(token.content)}"
            )
    known = {token.content: token for token in encoder.get_added_tokens_decoder().values()}
    for text in sorted({*roles, *settings.more_special}):
        if encoder.token_to_id(text) is not None and not (text in known and known[text].special):
            encoder.add_special_tokens([_made_special(known.get(text, AddedToken(text, normalized=False)))])


def _made_special(token: AddedToken) -> AddedToken:
    flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(token.content, special=True, **flags)


def _apply_ends(
    encoder: Tokenizer, settings: TokenizerSettings, roles: dict[str, str], *, is_sentencepiece: bool
) -> None:
    """add_bos_token and add_eos_token override tokenizer.json. With a tokenizer.model and no setting, a text starts
    with the begin token."""
    ids = encoder.encode("").ids
    wanted: dict[str, str | None] = {}
    differs = False
    for role, place, should in (("bos", slice(0, 1), settings.adds_bos), ("eos", slice(-1, None), settings.adds_eos)):
        named = roles.get(f"{role}_token")
        token = None if named is None or encoder.token_to_id(named) is None else named
        is_added = token is not None and ids[place] == [encoder.token_to_id(token)]
        if should is None:
            should = is_added or (is_sentencepiece and role == "bos" and token is not None)
        if should and token is None:
            missing = f"no {role}_token" if named is None else f"no {role}_token {shown(named)} in the vocabulary"
            raise TokenizerError(f"{settings.path}: add_{role}_token is true, but there is {missing}")
        differs |= should != is_added
        wanted[role] = token if should else None
    if differs:
        set_ends(encoder, wanted["bos"], wanted["eos"])


def _chat_templates(folder: Path, settings: TokenizerSettings) -> dict[str, str]:
    templates = dict(settings.chat_templates)
    if is_there(folder / "chat_template.jinja"):
        templates["default"] = read_text(folder / "chat_template.jinja")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        templates[path.stem] = read_text(path)
    return templates
