"""A tokenizer in tiktoken's file, which Moonshot publishes Kimi K2 and Moonlight with.

    IQ== 0          a token's bytes in base64, and its rank: its id, and the order in which pairs are merged
    Ig== 1

tiktoken merges the neighbours whose token has the lowest rank; a list of merges says the same, if it has every way to
split a token into two, by rank. How text is cut into words is in Moonshot's code, and so is that 256 special tokens
follow the others, of which tokenizer_config.json names some.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

from octavo.errors import TokenizerError
from octavo.models.regular_file import read_text
from octavo.shown import shown
from octavo.text.detokenizer import byte_alphabet
from octavo.text.text_cuts import cutter

FILE = "tiktoken.model"
_CUT = "kimi-k2"
_NUM_SPECIAL = 256
_LONGEST_TOKEN = 1 << 10


def tiktoken_encoder(path: Path, added: Mapping[int, AddedToken]) -> Tokenizer:
    """added: the special tokens that have names, by id."""
    ranks = _read_ranks(path)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    texts = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {texts[token]: rank for token, rank in ranks.items()}
    encoder = Tokenizer(models.BPE(vocab=vocab, merges=_merges(ranks, texts), ignore_merges=True))
    pre_tokenizer = cutter(_CUT)
    assert pre_tokenizer is not None, "the rule is known"
    encoder.pre_tokenizer, encoder.decoder = pre_tokenizer, decoders.ByteLevel()
    own = range(len(ranks), len(ranks) + _NUM_SPECIAL)
    unnamed = {each: AddedToken(f"<|reserved_token_{each}|>", special=True, normalized=False) for each in own}
    encoder.add_tokens([added.get(each, unnamed[each]) for each in own])
    return encoder


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            text, rank = line.split(" ")
            token = base64.b64decode(text, validate=True)
            is_right = 0 < len(token) <= _LONGEST_TOKEN and token not in ranks and int(rank) == len(ranks)
        except (ValueError, binascii.Error):
            is_right = False
        if not is_right:
            raise TokenizerError(
                f"{path}: line {number} is {shown(line)}, allowed a new token in base64 and its rank, {len(ranks)}; "
                "download it again"
            )
        ranks[token] = len(ranks)
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(f"{path} has no token for the byte {lacking[0]}; download it again")
    return ranks


def _merges(ranks: Mapping[bytes, int], texts: Mapping[bytes, str]) -> list[tuple[str, str]]:
    """Of a token's splits, those come first whose parts have lower ranks."""
    merges: list[tuple[str, str]] = []
    for token in ranks:  # in the order of ranks
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(texts[left], texts[right]) for left, right in known]
    return merges
