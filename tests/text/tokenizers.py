"""Tokenizers for tests: the packaged models', opened once, and small ones of every kind."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.config import ModelConfig
from octavo.models.loader import open_checkpoint
from octavo.text.tokenizer import Tokenizer as OctavoTokenizer
from octavo.text.tokenizer import open_tokenizer


@cache
def packaged(name: str) -> OctavoTokenizer:
    config = ModelConfig(model=name)
    tokenizer = open_tokenizer(config, lambda: open_checkpoint(config).tokenizer_source)
    assert tokenizer is not None
    return tokenizer


def byte_level() -> Tokenizer:
    """All bytes, a few merges, a special token, and one in plain text with a space in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "©")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    encoder = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens(["<s>", "</s>"])
    encoder.add_tokens([AddedToken("plain €", normalized=False)])
    return encoder


def byte_fallback() -> Tokenizer:
    """As Llama 2: a space before the text, spaces as ▁, bytes for characters that are not in the vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "a", "b", "é", "▁a", "ab", "▁ab"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    encoder = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    encoder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    encoder.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    encoder.add_special_tokens(["<s>", "</s>"])
    return encoder


def metaspace(prepend_scheme: str = "always") -> Tokenizer:
    tokens = ["<unk>", "▁", "a", "b", "▁a", "▁▁"]
    encoder = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[("▁", "a"), ("▁", "▁")])
    )
    encoder.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    encoder.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return encoder


def unigram() -> Tokenizer:
    """As T5 and its kin: likely pieces instead of merges, spaces as ▁."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -3.0), ("b", -3.0), ("é", -4.0), ("▁a", -2.5), ("ab", -3.5)]
    encoder = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    encoder.decoder = decoders.Metaspace(prepend_scheme="first")
    encoder.add_special_tokens(["<s>", "</s>"])
    return encoder
