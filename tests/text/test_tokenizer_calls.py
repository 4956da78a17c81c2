"""A Tokenizer called as transformers' are: the same answers as theirs, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_parts import TokenizerParts, set_ends

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TEXTS = ["a cab", "abba", "b"]


@pytest.fixture(scope="module")
def encoder() -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *"Ġabc", "ab", "ca"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "a")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ROLES.values()])
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    set_ends(made, "<s>", None)
    return made


@pytest.fixture(scope="module")
def ours(encoder: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(TokenizerParts(encoder, ROLES))


@pytest.fixture(scope="module")
def theirs(encoder: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    copy = tokenizers.Tokenizer.from_str(encoder.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=copy, padding_side="right", **ROLES)


CALLS: list[tuple[Any, dict[str, Any]]] = [
    ("a cab", {}),
    ("a cab", {"add_special_tokens": False}),
    (TEXTS, {}),
    (TEXTS, {"padding": True}),
    (TEXTS, {"padding": "max_length", "max_length": 9}),
    (TEXTS, {"truncation": True, "max_length": 3}),
    (TEXTS, {"truncation": True, "max_length": 3, "padding": True, "return_tensors": "np"}),
    ("abba", {"return_tensors": "np"}),
]


@pytest.mark.parametrize(("text", "options"), CALLS, ids=str)
def test_a_call_encodes_as_theirs(ours: Tokenizer, theirs: Any, text: Any, options: dict[str, Any]) -> None:
    mine, other = ours(text, **options), theirs(text, return_token_type_ids=False, **options)
    assert list(mine) == list(other) == ["input_ids", "attention_mask"]
    for name in mine:
        assert type(mine[name]) is type(other[name])
        assert np.array_equal(mine[name], other[name]) if "return_tensors" in options else mine[name] == other[name]
    assert mine.input_ids is mine["input_ids"]
    assert mine.attention_mask is mine["attention_mask"]


def test_the_vocabulary_is_theirs(ours: Tokenizer, theirs: Any) -> None:
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert len(ours) == len(theirs) == ours.vocab_size
    ids = [5, 9, 1, 10]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    as_array: Any = np.array(ids)
    assert ours.convert_ids_to_tokens(as_array) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(9) == theirs.convert_ids_to_tokens(9) == "ca"
    assert ours.convert_tokens_to_ids("ca") == theirs.convert_tokens_to_ids("ca") == 9
    assert ours.convert_tokens_to_ids(["ca", "<s>"]) == theirs.convert_tokens_to_ids(["ca", "<s>"])
    assert ours.tokenize("a cab") == theirs.tokenize("a cab")
    assert ours.convert_tokens_to_string(["Ġ", "ca", "b"]) == theirs.convert_tokens_to_string(["Ġ", "ca", "b"])


def test_special_tokens_are_theirs(ours: Tokenizer, theirs: Any) -> None:
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert ours.special_tokens_map == theirs.special_tokens_map
    for role in ROLES:
        assert getattr(ours, role) == getattr(theirs, role)
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_id")


def test_batches_are_decoded(ours: Tokenizer, theirs: Any) -> None:
    batch = [[1, 5, 9], [2], []]
    for skip in (True, False):
        decoded = ours.batch_decode(batch, skip_special_tokens=skip)
        assert decoded == theirs.batch_decode(batch, skip_special_tokens=skip)
        assert ours.decode(5, skip_special_tokens=skip) == theirs.decode(5, skip_special_tokens=skip)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t(None), "text is None, allowed are a string and a list of strings"),
        (lambda t: t(["a", 3]), "text is 3, allowed is a string"),
        (lambda t: t("a", return_tensors="pt"), "return_tensors is 'pt', allowed are None and 'np'"),
        (lambda t: t("a", truncation=True), "max_length is None, needed is a whole number"),
        (lambda t: t(TEXTS, return_tensors="np"), "unequal lengths: set padding=True"),
        (lambda t: t.convert_ids_to_tokens(["a"]), "a token id is 'a', allowed is a whole number"),
        (lambda t: t.convert_tokens_to_ids([3]), "text is 3, allowed is a string"),
        (lambda t: t.apply_chat_template([], tokenize=True), "tokenize is set, but this returns text"),
    ],
)
def test_what_cannot_be_is_refused(ours: Tokenizer, call: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(ours)


def test_padding_needs_a_token_for_it(encoder: tokenizers.Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="the tokenizer has no pad_token"):
        Tokenizer(TokenizerParts(encoder))(TEXTS, padding=True)
