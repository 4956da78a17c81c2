"""The tokenizer inside a GGUF file, built for the `tokenizers` library.

tokenizer.ggml.model   "gpt2"    byte-level BPE: tokens, merges, and a named way to cut text before merging
                       "llama"   SentencePiece BPE: tokens and scores, bytes for characters it lacks
tokenizer.ggml.token_type   of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
"""

from __future__ import annotations

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models

from octavo.models.gguf import GGUFFile
from octavo.shown import shown
from octavo.text.gguf_vocabulary import CONTROL, USER_DEFINED, GGUFVocabulary
from octavo.text.sentencepiece_tokenizer import Pieces, bpe_encoder, write_spaces
from octavo.text.text_cuts import WHOLE_WORDS_FIRST, cutter, known_cuts, text_normalizer
from octavo.text.tokenizer_parts import TokenizerParts, collector_off, naming, set_ends

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_from_gguf(file: GGUFFile) -> TokenizerParts:
    vocabulary = GGUFVocabulary(file)
    with naming(
        f"{file.path}: tokenizer.ggml.tokens make no tokenizer", "pass tokenizer= a folder with a tokenizer.json"
    ):
        with collector_off():
            encoder = _build(vocabulary)
        _mark_special(encoder, vocabulary)
        _add_ends(encoder, vocabulary)
    special_tokens = {f"{role}_token": vocabulary.token(key) for role, key in _ROLES.items()}
    return TokenizerParts(
        encoder,
        {role: token for role, token in special_tokens.items() if token is not None},
        vocabulary.chat_templates(),
    )


def _build(vocabulary: GGUFVocabulary) -> Tokenizer:
    if vocabulary.kind == "gpt2":
        return _byte_level(vocabulary)
    if vocabulary.kind == "llama":
        return _sentencepiece(vocabulary)
    raise vocabulary.broken("model", f"is {shown(vocabulary.kind)}; Octavo reads 'gpt2' and 'llama'")


def _byte_level(vocabulary: GGUFVocabulary) -> Tokenizer:
    pre_tokenizer = cutter(vocabulary.cut)
    if pre_tokenizer is None:
        raise vocabulary.broken("pre", f"is {shown(vocabulary.cut)}; Octavo knows {', '.join(known_cuts())}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=vocabulary.merges(),
            ignore_merges=vocabulary.cut in WHOLE_WORDS_FIRST,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if (normalizer := text_normalizer(vocabulary.cut)) is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    encoder = bpe_encoder(
        Pieces(
            tokens=vocabulary.tokens,
            scores=vocabulary.scores(),
            types=vocabulary.types,
            unknown=vocabulary.token("unknown"),
            raw=vocabulary.raw_tokens.raw,
        )
    )
    write_spaces(encoder, "always" if vocabulary.flag("add_space_prefix", True) else "never")
    return encoder


def _mark_special(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """Control and user-defined tokens are found in text before anything else; only the former are special."""
    for token_type, special in ((CONTROL, True), (USER_DEFINED, False)):
        ids = np.flatnonzero(vocabulary.types == token_type).tolist()
        texts = [vocabulary.tokens[token_id] for token_id in ids]
        tokenizer.add_tokens(
            [
                AddedToken(text, special=special, normalized=False, rstrip=vocabulary.swallows_space_after(text))
                for text in texts
                if text
            ]
        )


def _add_ends(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """The begin and end tokens that this model wants around a text."""
    adds_bos = vocabulary.flag("add_bos_token", vocabulary.kind == "llama" or vocabulary.cut in WHOLE_WORDS_FIRST)
    bos = vocabulary.token("bos") if adds_bos else None
    eos = vocabulary.token("eos") if vocabulary.flag("add_eos_token", False) else None
    if bos or eos:
        set_ends(tokenizer, bos, eos)
