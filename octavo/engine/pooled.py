"""Requests for embeddings and classes: from a text to a Request, and from a model's numbers to what the user sees.

A text's special tokens are part of the model's work: an encoder pools the first token, a decoder the last. So where a
text is cut, they stay.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from octavo.engine.input import InputProcessor, Prompt, check_id, check_priority, one_salt
from octavo.errors import InvalidRequestError
from octavo.kernels.arrays import FloatArray
from octavo.lora_request import LoRARequest, check_lora
from octavo.outputs import RequestOutput
from octavo.pooling_params import ClassActivation, PooledForm, PoolingParams
from octavo.request import Request, RequestLimits
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer

#: nothing is drawn; the rows of a worker have sampling parameters all the same
_NO_DRAWS = SamplingParams(temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)


class PoolingInput(InputProcessor):
    """Makes the requests of a model that embeds or classifies."""

    def process(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        arrival_time: float,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> Request:
        if lora_request is not None:
            check_lora(lora_request, is_enabled=self.limits.enable_lora)
        if isinstance(params, SamplingParams):
            raise InvalidRequestError(
                f"this model {self._form.does} texts and generates none: call {self._form.how}, or load a model that "
                "generates; a decoder does, with runner='generate'"
            )
        if not isinstance(params, PoolingParams):
            raise InvalidRequestError(f"pooling_params is {shown(params)}, allowed is a PoolingParams")
        check_id(request_id)
        check_priority(priority)
        prompt, types = without_types(prompt)
        text, token_ids, salt = self._read(prompt, is_cut=params.truncate_prompt_tokens is not None)
        second_text = 0 if types is None else self._second_text(types, len(token_ids))
        token_ids = self._cut(text, token_ids, params.truncate_prompt_tokens)
        self._check_length(token_ids)
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids.tolist(),
            sampling_params=_NO_DRAWS,
            seed=0,
            arrival_time=arrival_time,
            max_output_tokens=0,
            prompt=text,
            priority=priority,
            cache_salt=one_salt(cache_salt, salt),
            pooling_params=params.checked_for(self._form),
            lora_request=lora_request,
            second_text=second_text,
        )

    def _second_text(self, types: object, num_tokens: int) -> int:
        if not self._form.takes_types:
            raise InvalidRequestError("token_type_ids are given, but this model has no types: leave them out")
        return second_text_of(types, num_tokens)

    @property
    def _form(self) -> PooledForm:
        assert self.limits.pooled is not None, "the model embeds"
        return self.limits.pooled

    def _cut(self, text: str | None, token_ids: array[int], keep: int | None) -> array[int]:
        """The text's first tokens, so many with the special ones around it."""
        if keep is None:
            return token_ids
        most = self.limits.max_model_len
        if keep > most:
            raise InvalidRequestError(f"truncate_prompt_tokens is {keep}, allowed is up to max_model_len = {most}")
        keep = most if keep == -1 else keep
        if len(token_ids) <= keep:
            return token_ids
        return cut_end(token_ids, keep, None if text is None else self._tokenizer)

    def _check_length(self, token_ids: array[int]) -> None:
        if not token_ids:
            raise InvalidRequestError("the text is empty, allowed is at least one token")
        if len(token_ids) > (most := self.limits.max_model_len):
            raise InvalidRequestError(
                f"the text has {len(token_ids)} tokens, allowed are {most} (max_model_len); shorten it, set "
                "truncate_prompt_tokens=-1, or raise max_model_len, if the model takes more"
            )
        self._check_ids("the text", token_ids)


def cut_end(token_ids: array[int], keep: int, tokenizer: Tokenizer | None) -> array[int]:
    """So many tokens of a longer text. tokenizer: the one that has put special tokens around the text; they stay."""
    before, after = (0, 0) if tokenizer is None else _num_special(tokenizer)
    if keep <= before + after:
        raise InvalidRequestError(
            f"truncate_prompt_tokens is {keep}, allowed is {before + after + 1} or more: {before + after} of a text's "
            "tokens are special"
        )
    return token_ids[: keep - after] + token_ids[len(token_ids) - after :]


def pair_prompt(
    tokenizer: Tokenizer, pair: tuple[str, str], keep: int | None, limits: RequestLimits, *, adds_special: bool = True
) -> Prompt:
    """Two texts as one prompt, which may be cut to `keep` tokens, -1: as many as fit, at the end of the second."""
    assert limits.pooled is not None, "the model scores pairs"
    most = limits.max_model_len
    if keep is None and (fewest := sum(map(tokenizer.fewest_tokens, pair))) > most:
        raise InvalidRequestError(
            f"the two texts have {fewest} tokens at least, allowed are {most} (max_model_len); shorten them, or set "
            "truncate_prompt_tokens=-1"
        )
    token_ids, types, second = tokenizer.encode_pair(*pair, adds_special)
    keep = most if keep == -1 else keep
    if keep is not None and len(token_ids) > keep:
        own = tokenizer if adds_special else None
        ids = cut_end(array("q", token_ids), keep, own).tolist()
        num_after = 0 if own is None else _num_special(own)[1]
        if keep - num_after <= second:
            raise InvalidRequestError(
                f"truncate_prompt_tokens is {keep}, which leaves nothing of the second text: the first has "
                f"{second} tokens; allowed is {second + num_after + 1} or more, or a shorter first text"
            )
        token_ids, types = ids, types[:keep]
    return {"prompt_token_ids": token_ids} | ({"token_type_ids": types} if limits.pooled.takes_types else {})


def _num_special(tokenizer: Tokenizer) -> tuple[int, int]:
    """The number of special tokens before and behind a text."""
    own, whole = (tokenizer.encode("a", add_special_tokens=adds) for adds in (False, True))
    num_special = len(whole) - len(own)
    before = next((first for first in range(num_special) if whole[first : first + len(own)] == own), num_special)
    return before, num_special - before


def without_types(prompt: Prompt) -> tuple[Prompt, object]:
    """A prompt, and the types that its dict names, which say which of a pair's texts each token is of."""
    if not isinstance(prompt, Mapping) or prompt.get("token_type_ids") is None:
        return prompt, None
    return {key: value for key, value in prompt.items() if key != "token_type_ids"}, prompt["token_type_ids"]


def second_text_of(types: object, num_tokens: int) -> int:
    """Where the second text begins: types are zeros, then ones; 0: there is one text."""
    many: list[Any] = list(types) if isinstance(types, Iterable) and not isinstance(types, str | bytes) else []
    first = many.index(1) if 1 in many else len(many)
    if len(many) != num_tokens or many != [0] * first + [1] * (num_tokens - first) or first == 0:
        raise InvalidRequestError(
            f"token_type_ids is {shown(types)}, allowed is a 0 for each token of the first text, then a 1 for each of "
            f"the second: {num_tokens} numbers"
        )
    return first % num_tokens


def numbers_of(output: RequestOutput, params: PoolingParams, form: PooledForm) -> FloatArray:
    """What was asked of a model's numbers: [size], or [tokens, size] if it was asked of each token. params: checked.
    Raises InvalidRequestError if the request has failed; others are not affected."""
    if output.pooled is None:
        ended = output.outputs[0] if output.outputs else None
        assert ended is None or ended.finish_reason in ("abort", "error"), f"{output.request_id} ended without numbers"
        why = ended.stop_reason if ended is not None and ended.finish_reason == "error" else "it was aborted"
        raise InvalidRequestError(f"request {output.request_id} has no {_WHAT[bool(form.labels)]}: {why}")
    rows: FloatArray = np.frombuffer(output.pooled, np.float32).reshape(-1, form.size)[:, : params.dimensions]
    if not np.isfinite(rows).all():
        raise InvalidRequestError(
            f"request {output.request_id} has no {_WHAT[bool(form.labels)]}: its numbers are not finite; check the "
            "model's weights"
        )
    if params.use_activation:
        rows = _probabilities(rows, form.activation) if form.labels else _normalised(rows)
    return rows if params.of_tokens else rows[0]


_WHAT = {True: "class", False: "embedding"}


def _normalised(rows: FloatArray) -> FloatArray:
    """[N, size]: each of length 1."""
    lengths: FloatArray = np.array([np.linalg.norm(row) for row in rows], np.float32)
    return (rows / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32, copy=False)


def _probabilities(rows: FloatArray, activation: ClassActivation) -> FloatArray:
    if activation == "identity":
        return rows
    found: FloatArray
    if activation == "sigmoid":
        found = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * rows))
    else:
        exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
        found = exponentials / exponentials.sum(axis=1, keepdims=True)
    return found
