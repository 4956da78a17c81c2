"""The methods of transformers' tokenizers, built on ours.

tokenizer("A text")             {"input_ids": [...], "attention_mask": [1, ...]}
tokenizer(["A", "B"], padding=True, truncation=True, max_length=8)
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from tokenizers import Tokenizer as Encoder

from octavo.errors import InvalidRequestError


class Encoded(dict[str, Any]):
    """Token ids and attention mask: a list each, or a list of lists for a list of texts."""

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        return self["attention_mask"]


class TransformersCalls:
    """Adds transformers' methods to a tokenizer."""

    _encoder: Encoder
    _special_tokens: Mapping[str, str]
    _chat_templates: Mapping[str, str]
    is_fast = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError  # the tokenizer's own

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        raise NotImplementedError  # the tokenizer's own

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoded:
        """Encode one text or several. padding: to the longest, or "max_length". return_tensors: "np" or None."""
        if return_tensors not in (None, "np"):
            raise InvalidRequestError(
                f"return_tensors is {return_tensors!r}, allowed are None and 'np'; convert the lists to other tensors"
            )
        texts = [text] if isinstance(text, str) else _texts(text)
        rows = [self.encode(one, add_special_tokens) for one in texts]
        if truncation:
            most = _length(max_length)
            rows = [row[:most] for row in rows]
        masks = [[1] * len(row) for row in rows]
        if padding:
            width = _length(max_length) if padding == "max_length" else max(map(len, rows), default=0)
            pad_id = self._pad_id()
            masks = [mask + [0] * (width - len(mask)) for mask in masks]
            rows = [row + [pad_id] * (width - len(row)) for row in rows]
        found = {"input_ids": rows, "attention_mask": masks}
        if return_tensors == "np":
            return Encoded({name: _matrix(values) for name, values in found.items()})
        return Encoded({name: values[0] if isinstance(text, str) else values for name, values in found.items()})

    def config(self) -> dict[str, Any]:
        """This tokenizer as the content of a tokenizer_config.json."""
        names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = {
            str(token_id): {name: getattr(token, name) for name in names}
            for token_id, token in self._encoder.get_added_tokens_decoder().items()
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._special_tokens,
            "added_tokens_decoder": added,
            "chat_template": self._chat_templates.get("default"),
        }

    def __len__(self) -> int:
        return int(self._encoder.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True  # also with an empty vocabulary

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones too -> its id."""
        return dict(self._encoder.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that were added to the trained vocabulary -> their ids."""
        return {token.content: token_id for token_id, token in self._encoder.get_added_tokens_decoder().items()}

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str | None]:
        """The tokens of a text, as the vocabulary writes them."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens))

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """`decode`, for each of several."""
        return [self.decode(token_ids, skip_special_tokens) for token_ids in sequences]

    @overload
    def convert_ids_to_tokens(self, token_ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, token_ids: int | Sequence[int]) -> str | list[str | None] | None:
        """The tokens as the vocabulary writes them; None for ids past it."""
        if not isinstance(token_ids, Sequence | np.ndarray):
            return self._token(token_ids)
        return [self._token(token_id) for token_id in token_ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The ids of tokens as the vocabulary writes them; None for unknown tokens."""
        if isinstance(tokens, str):
            return self._encoder.token_to_id(tokens)
        return [self._encoder.token_to_id(token) for token in _texts(tokens)]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens as the vocabulary writes them."""
        ids = [token_id for token_id in self.convert_tokens_to_ids(_texts(tokens)) if token_id is not None]
        return self.decode(ids, skip_special_tokens=False)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens that have a role: bos_token, eos_token, ..."""
        return dict(self._special_tokens)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that skip_special_tokens leaves out, and of those with a role."""
        marked = [i for i, token in self._encoder.get_added_tokens_decoder().items() if token.special]
        named = [self._encoder.token_to_id(token) for token in self._special_tokens.values()]
        return sorted({token_id for token_id in (*marked, *named) if token_id is not None})

    @property
    def all_special_tokens(self) -> list[str | None]:
        return self.convert_ids_to_tokens(self.all_special_ids)

    @property
    def bos_token(self) -> str | None:
        return self._special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self._special_tokens.get("eos_token")

    @property
    def unk_token(self) -> str | None:
        return self._special_tokens.get("unk_token")

    @property
    def pad_token(self) -> str | None:
        return self._special_tokens.get("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return None if self.unk_token is None else self._encoder.token_to_id(self.unk_token)

    @property
    def pad_token_id(self) -> int | None:
        return None if self.pad_token is None else self._encoder.token_to_id(self.pad_token)

    def _token(self, token_id: object) -> str | None:
        try:
            return self._encoder.id_to_token(operator.index(token_id))  # type: ignore[arg-type]
        except OverflowError:
            return None
        except TypeError:
            raise InvalidRequestError(f"a token id is {token_id!r}, allowed is a whole number") from None

    def _pad_id(self) -> int:
        if self.pad_token_id is None:
            raise InvalidRequestError("padding is set, but the tokenizer has no pad_token; encode without padding")
        return self.pad_token_id


def _texts(values: object) -> list[str]:
    if isinstance(values, Mapping) or not isinstance(values, Sequence) or isinstance(values, bytes):
        raise InvalidRequestError(f"text is {values!r}, allowed are a string and a list of strings")
    for one in values:
        if not isinstance(one, str):
            raise InvalidRequestError(f"text is {one!r}, allowed is a string")
    return list(values)


def _length(max_length: object) -> int:
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 0:
        raise InvalidRequestError(f"max_length is {max_length!r}, needed is a whole number to truncate or pad to")
    return max_length


def _matrix(rows: list[list[int]]) -> Any:
    if len({len(row) for row in rows}) > 1:
        raise InvalidRequestError("return_tensors is 'np' and the texts have unequal lengths: set padding=True")
    return np.array(rows, dtype=np.int64)
