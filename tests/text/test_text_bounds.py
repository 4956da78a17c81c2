"""A text never has fewer tokens than its bytes say, whatever the tokenizer does to it."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from octavo.engine.input import InputProcessor
from octavo.errors import InvalidRequestError
from octavo.request import RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.text.text_bounds import text_bounds
from tests.text.tokenizers import byte_fallback, byte_level, metaspace, packaged


def normalised(*parts: normalizers.Normalizer) -> Tokenizer:
    encoder = byte_level()
    encoder.normalizer = normalizers.Sequence(list(parts))
    return encoder


def eats_space() -> Tokenizer:
    encoder = byte_level()
    encoder.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return encoder


def loses_bytes() -> Tokenizer:
    vocab = {character: index for index, character in enumerate("abc")}
    encoder = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return encoder


ENCODERS = {
    "smollm2": lambda: packaged("smollm2")._encoder,
    "gemma3": lambda: packaged("gemma3-270m")._encoder,
    "bytes": byte_level,
    "fallback": byte_fallback,
    "composed": lambda: normalised(normalizers.NFC()),
    "compatible": lambda: normalised(normalizers.NFKC(), normalizers.Lowercase()),
    "stripped": lambda: normalised(normalizers.Strip()),
    "shortened": lambda: normalised(normalizers.Replace("aaaa", "b")),
    "space": eats_space,
    "lost": loses_bytes,
}
#: characters that normal forms shrink most, a space, and bytes for which smollm2 has no token
ALPHABET = [
    "a",
    " ",
    "\n",
    "\x04",
    "\u0390",
    "\u03b9\u0308\u0301",
    "\U0001d7ce",
    "\u212b",
    "\ufdfa",
    "\u3000",
    "\u1f82",
    "<mask>",
]


@pytest.mark.parametrize("name", ENCODERS)
def test_no_text_has_fewer_tokens(name: str) -> None:
    encoder, rng = ENCODERS[name](), random.Random(name)
    bounds = text_bounds(encoder)
    assert bounds is not None
    for _ in range(300):
        letters = [*rng.sample(ALPHABET, rng.randrange(1, 5)), chr(rng.choice([rng.randrange(0x250), 0x1F4A9]))]
        text = "".join(rng.choice(letters) for _ in range(rng.choice([1, 20, 500])))
        assert bounds.fewest_tokens(text) <= len(encoder.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    "encoder",
    [
        metaspace(),  # no token for most bytes, and no unknown token: it drops such bytes
        normalised(normalizers.Replace(Regex("a+"), "")),
        normalised(normalizers.StripAccents()),
        Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
        Tokenizer(models.BPE({"<unk>": 0}, [], unk_token="<unk>", fuse_unk=True)),
    ],
)
def test_of_tokenizers_that_may_lose_anything_nothing_is_said(encoder: Tokenizer) -> None:
    assert text_bounds(encoder) is None


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = packaged("smollm2")
    limits = RequestLimits(max_model_len=64, max_num_seqs=4, max_logprobs=5, vocab_size=49152, eos_token_ids=(2,))
    inputs = InputProcessor(tokenizer, limits, seed=0)
    text = "word " * 5000
    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "encode", None)
        with pytest.raises(
            InvalidRequestError, match=r"25000 characters, which are 155 tokens at least, allowed are 63"
        ):
            inputs.process("a", text, SamplingParams(), 0.0)
    cut = inputs.process("a", text, SamplingParams(truncate_prompt_tokens=5), 0.0)
    assert cut.prompt_token_ids == tokenizer.encode(text)[-5:]
    with pytest.raises(InvalidRequestError, match=r"the prompt has 1001 tokens, allowed are 63"):
        inputs.process("a", "word " * 1000, SamplingParams(), 0.0)


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_long_texts_are_the_same_tokens_and_back(name: str) -> None:
    tokenizer = packaged(name)
    text = "".join(f"Line {number}: caf\u00e9 \U0001f44b <b>\n\n" for number in range(300))
    ids = tokenizer.encode(text)
    assert ids == tokenizer._encoder.encode(text).ids
    assert tokenizer.decode(ids) == tokenizer._encoder.decode(ids) == text
    with pytest.raises(InvalidRequestError, match=r"half of a surrogate pair at character 5000"):
        tokenizer.encode("a" * 5000 + "\ud800")
