"""Requests for embeddings: from a text to a Request, and from a model's numbers to what the user sees.

A text's special tokens are part of the model's work: an encoder pools the first token, a decoder the last. So where a
text is cut, they stay.
"""

from __future__ import annotations

from array import array

import numpy as np

from octavo.engine.input import InputProcessor, Prompt, check_id, check_priority, one_salt
from octavo.errors import InvalidRequestError
from octavo.kernels.ops import FloatArray
from octavo.outputs import RequestOutput
from octavo.pooling_params import PooledForm, PoolingParams
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer

#: nothing is drawn; the rows of a worker have sampling parameters all the same
_NO_DRAWS = SamplingParams(temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)


class PoolingInput(InputProcessor):
    """Makes the requests of a model that embeds."""

    def process(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        arrival_time: float,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Request:
        if isinstance(params, SamplingParams):
            raise InvalidRequestError(
                "this model embeds texts and generates none: call embed (POST /v1/embeddings), or load a model that "
                "generates; a decoder does, with runner='generate'"
            )
        if not isinstance(params, PoolingParams):
            raise InvalidRequestError(f"pooling_params is {shown(params)}, allowed is a PoolingParams")
        check_id(request_id)
        check_priority(priority)
        text, token_ids, salt = self._read(prompt, is_cut=params.truncate_prompt_tokens is not None)
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
        )

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


def _num_special(tokenizer: Tokenizer) -> tuple[int, int]:
    """The number of special tokens before and behind a text."""
    own, whole = (tokenizer.encode("a", add_special_tokens=adds) for adds in (False, True))
    num_special = len(whole) - len(own)
    before = next((first for first in range(num_special) if whole[first : first + len(own)] == own), num_special)
    return before, num_special - before


def embedding(output: RequestOutput, params: PoolingParams) -> FloatArray:
    """What was asked of a model's numbers. params: checked. Raises InvalidRequestError if the request has failed;
    others are not affected."""
    reason = output.outputs[0].finish_reason if output.outputs else "error"
    if output.pooled is None:
        why = output.outputs[0].stop_reason if output.outputs and reason == "error" else "it was aborted"
        raise InvalidRequestError(f"request {output.request_id} has no embedding: {why}")
    vector: FloatArray = np.frombuffer(output.pooled, np.float32)[: params.dimensions]
    if not np.isfinite(vector).all():
        raise InvalidRequestError(
            f"request {output.request_id} has no embedding: its numbers are not finite; check the model's weights"
        )
    if params.use_activation:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return vector
