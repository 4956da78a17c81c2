"""From a user's prompt and parameters to a Request: tokenise, and check every limit before the engine sees it."""

from __future__ import annotations

import operator
import random
from array import array
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from octavo.engine.asked_grammars import AskedGrammars
from octavo.engine.asked_thoughts import asked_thoughts
from octavo.engine.beam_search import params_for_beams
from octavo.errors import InvalidRequestError
from octavo.lora_request import LoRARequest, check_lora
from octavo.pooling_params import PoolingParams
from octavo.request import Request, RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.shown import shown, suggestion
from octavo.structured_outputs import Thoughts
from octavo.text.answers.thinking import PROMPT_END
from octavo.text.tokenizer import Tokenizer
from octavo.vllm_options import PROMPT_KEYS as FOREIGN_KEYS
from octavo.vllm_options import why_not

#: text, token ids, or {"prompt": text} / {"prompt_token_ids": ids}, either with an optional "cache_salt"
Prompt = str | Sequence[int] | Mapping[str, object]

PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


class InputProcessor:
    """Its only state is the seeds that it draws for requests without one. Any thread may call it."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        limits: RequestLimits,
        seed: int,
        grammars: AskedGrammars | None = None,
        *,
        steps_here: bool = False,
    ) -> None:
        """steps_here: all steps of the engine run in this process, so they can call a request's functions."""
        self._steps_here = steps_here
        self._tokenizer = tokenizer
        self.limits = limits
        self._seeds = random.Random(seed)
        self._grammars = grammars or AskedGrammars.of(tokenizer, limits.vocab_size, limits.eos_token_ids)
        self._last_bad_words: tuple[tuple[str, ...], tuple[tuple[int, ...], ...]] = ((), ())

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
        """Raises InvalidRequestError. cache_salt: as in a prompt dict, which may name it instead."""
        check_id(request_id)
        check_priority(priority)
        if lora_request is not None:
            check_lora(lora_request, is_enabled=self.limits.enable_lora)
        if isinstance(params, PoolingParams):
            raise InvalidRequestError("this model generates text and embeds none: runner='pooling' loads it to embed")
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"sampling_params is {shown(params)}, allowed is a SamplingParams")
        params = params.clone()  # the user may change the original later
        text, token_ids, own_salt = self._read(prompt, is_cut=params.truncate_prompt_tokens is not None)
        cache_salt = one_salt(cache_salt, own_salt)
        token_ids = self._truncate(token_ids, params.truncate_prompt_tokens)
        self._check_prompt(token_ids)
        self._check_params(params)
        room = self.limits.max_model_len - len(token_ids)
        ends = frozenset(() if params.ignore_eos else self.limits.eos_token_ids)
        stops = ends | frozenset(params.stop_token_ids or ())
        bad_word_ids = self._bad_words(tuple(params.bad_words or ()))
        if params.use_beam_search:
            params = params_for_beams(params, len(stops), self.limits.vocab_size)
        self._check_drawable(params, stops, bad_word_ids)
        grammar = None if params.structured_outputs is None else self._grammars.read(params.structured_outputs)
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids.tolist(),
            sampling_params=params,
            seed=(params.seed if params.seed is not None else self._seeds.getrandbits(63)) & (2**64 - 1),
            arrival_time=arrival_time,
            max_output_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            prompt=text,
            priority=priority,
            cache_salt=cache_salt,
            eos_token_ids=ends,
            stop_token_ids=stops,
            bad_word_ids=bad_word_ids,
            grammar=grammar,
            thoughts=self._thoughts(params, token_ids),
            lora_request=lora_request,
        )

    def _thoughts(self, params: SamplingParams, token_ids: array[int]) -> Thoughts | None:
        """None: nothing is asked that depends on them, or there are none."""
        form, budget = params.structured_outputs, params.thinking_token_budget
        if form is None and budget is None:
            return None
        tokenizer = self._tokenizer
        marks = None if tokenizer is None else tokenizer.thought_marks
        if tokenizer is None or marks is None:
            if budget is None:
                return None
            raise InvalidRequestError(
                f"thinking_token_budget is {budget}, but this model is not known to think: set reasoning_parser, or "
                "leave it out"
            )
        return asked_thoughts(tokenizer, marks, token_ids[-PROMPT_END:].tolist(), form, budget)

    def continuation(self, given: str | Sequence[int]) -> list[int]:
        """Tokens to append to others: those of a text, without special tokens, or token ids. Raises
        InvalidRequestError."""
        if isinstance(given, str):
            if self._tokenizer is None:
                raise InvalidRequestError("text is given, but skip_tokenizer_init=True: pass token ids instead")
            self._check_text(self._tokenizer, given, "the text")
            token_ids = array("q", self._tokenizer.encode(given, add_special_tokens=False))
        elif isinstance(given, (bytes, bytearray, Mapping)) or not isinstance(given, Iterable):
            raise InvalidRequestError(f"text is {shown(given)}, allowed are text and token ids")
        else:
            token_ids = _token_ids(given, "the text")
        if not token_ids:
            raise InvalidRequestError("the text is empty, allowed is at least one token")
        self._check_ids("the text", token_ids)
        return token_ids.tolist()

    def _read(self, prompt: Prompt, is_cut: bool) -> tuple[str | None, array[int], object]:
        """-> text if any, token ids, cache salt. is_cut: the prompt will be truncated, so any length fits."""
        cache_salt: object = None
        if isinstance(prompt, Mapping):
            prompt, cache_salt = _unwrap(prompt)
        if not isinstance(prompt, str):
            return None, _token_ids(prompt), cache_salt
        if self._tokenizer is None:
            raise InvalidRequestError("the prompt is text, but skip_tokenizer_init=True: pass token ids instead")
        if not is_cut:
            self._check_text(self._tokenizer, prompt, "the prompt")
        return prompt, array("q", self._tokenizer.encode(prompt)), cache_salt

    def _check_text(self, tokenizer: Tokenizer, text: str, name: str) -> None:
        """Refuse a text that must have too many tokens before it is tokenised, which would take long."""
        most = self.limits.max_model_len - 1
        if len(text) > most and (fewest := tokenizer.fewest_tokens(text)) > most:
            raise InvalidRequestError(
                f"{name} has {len(text)} characters, which are {fewest} tokens at least, allowed are {most} "
                f"(max_model_len is {most + 1} and one new token must fit); shorten it, set truncate_prompt_tokens, "
                "or raise max_model_len"
            )

    def _truncate(self, token_ids: array[int], keep: int | None) -> array[int]:
        """The last `keep` tokens; -1 keeps as many as leave room for one new token."""
        if keep is None:
            return token_ids
        most = self.limits.max_model_len - 1
        if keep > most:
            raise InvalidRequestError(f"truncate_prompt_tokens is {keep}, allowed is up to max_model_len - 1 = {most}")
        return token_ids[-(most if keep == -1 else keep) :]

    def _check_prompt(self, token_ids: array[int]) -> None:
        limits = self.limits
        if not token_ids:
            raise InvalidRequestError("the prompt is empty, allowed is at least one token")
        if len(token_ids) >= limits.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(token_ids)} tokens, allowed are {limits.max_model_len - 1} (max_model_len is "
                f"{limits.max_model_len} and one new token must fit); shorten it, set truncate_prompt_tokens, "
                "or raise max_model_len (and kv_cache_memory_bytes, if the cache has lowered it)"
            )
        self._check_ids("the prompt", token_ids)

    def _check_params(self, params: SamplingParams) -> None:
        limits = self.limits
        if params.num_sequences > limits.max_num_seqs:
            name = "best_of" if params.num_sequences > params.n else "n"
            raise InvalidRequestError(
                f"{name} is {params.num_sequences}, allowed is up to max_num_seqs = {limits.max_num_seqs}; "
                f"lower {name} or raise max_num_seqs"
            )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is None:
                continue
            if limits.max_logprobs != -1 and (limits.vocab_size if count == -1 else count) > limits.max_logprobs:
                raise InvalidRequestError(
                    f"{name} is {count}, allowed is 0 to max_logprobs = {limits.max_logprobs}; "
                    "the engine option max_logprobs raises it, -1 for the whole vocabulary"
                )
            if count > limits.vocab_size:
                raise InvalidRequestError(f"{name} is {count}, the vocabulary has {limits.vocab_size} tokens")
        if params.logits_processors and not self._steps_here:
            raise InvalidRequestError(
                "logits_processors are set, but steps of this engine run in other processes, where they cannot be "
                "called: use one engine with one rank, by LLM or AsyncLLM, or logit_bias, allowed_token_ids, bad_words "
                "and structured_outputs"
            )
        self._check_ids("allowed_token_ids", tuple(params.allowed_token_ids or ()))
        self._check_ids("logprob_token_ids", tuple(params.logprob_token_ids or ()))
        self._check_ids("logit_bias", params.logit_bias or ())
        self._check_ids("stop_token_ids", tuple(params.stop_token_ids or ()))
        if self._tokenizer is None and (params.stop or params.bad_words):
            raise InvalidRequestError(
                "stop strings and bad_words need a tokenizer, but skip_tokenizer_init=True: "
                "use stop_token_ids and logit_bias"
            )

    def _check_drawable(
        self, params: SamplingParams, stops: frozenset[int], bad_word_ids: tuple[tuple[int, ...], ...]
    ) -> None:
        """Check that at least one token can be drawn first. Longer bad words ban tokens only later."""
        banned = {word[0] for word in bad_word_ids if len(word) == 1}
        allowed = set(params.allowed_token_ids or ()) or range(self.limits.vocab_size)
        if params.min_tokens:
            banned |= stops
        if len(banned) < len(allowed) or not banned.issuperset(allowed):
            return
        what = "allowed_token_ids holds" if params.allowed_token_ids else "the vocabulary has"
        until = f"end and stop tokens, which min_tokens={params.min_tokens} bans" if params.min_tokens else "no others"
        raise InvalidRequestError(
            f"{what} only bad_words and {until}: no token could be drawn; allow another, or drop one of them"
        )

    def _check_ids(self, name: str, token_ids: Collection[int]) -> None:
        if not token_ids:
            return
        ids = np.asarray(token_ids if isinstance(token_ids, array) else list(token_ids))
        for token_id in (int(ids.min()), int(ids.max())):
            if not 0 <= token_id < self.limits.vocab_size:
                raise InvalidRequestError(
                    f"{name} holds token id {token_id}, allowed are 0 to {self.limits.vocab_size - 1}"
                )

    def _bad_words(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        if not words:
            return ()
        if self._last_bad_words[0] == words:  # all prompts of a call have the same ones
            return self._last_bad_words[1]
        assert self._tokenizer is not None, "bad words were refused without a tokenizer"
        bad_words = self._tokenizer.bad_word_ids(words)
        self._check_ids("bad_words", [token_id for word in bad_words for token_id in word])
        self._last_bad_words = words, bad_words
        return bad_words


def check_id(request_id: object) -> None:
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequestError(f"request_id is {shown(request_id)}, allowed is a text of at least one character")
    _check_characters("request_id", request_id)


def check_unused(request_id: str, live: Container[str]) -> None:
    """live: the ids of unfinished requests."""
    if request_id in live:
        raise InvalidRequestError(
            f"request_id {request_id!r} is in use, allowed is one of its own: choose another or wait for its end"
        )


def _check_characters(name: str, text: str) -> None:
    """Texts are hashed and sent as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{name} is {shown(text)}, which holds half of a character; send whole ones"
        ) from None


def check_priority(priority: object) -> None:
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 1 << 63:
        raise InvalidRequestError(f"priority is {shown(priority)}, allowed is a whole number of 64 bits")


def _unwrap(prompt: Mapping[str, object]) -> tuple[str | Sequence[int], object]:
    if (refusal := why_not(FOREIGN_KEYS, prompt)) is not None:
        raise InvalidRequestError(f"in a prompt, {refusal}")
    for key in prompt:
        if key not in PROMPT_KEYS and key not in FOREIGN_KEYS:
            raise InvalidRequestError(f"the prompt has the key {shown(key)}; {suggestion(str(key), PROMPT_KEYS)}")
    text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if (text is None) == (token_ids is None):
        raise InvalidRequestError("a prompt dict holds exactly one of 'prompt' and 'prompt_token_ids'")
    if token_ids is None and not isinstance(text, str):
        raise InvalidRequestError(f"the prompt dict's 'prompt' is {shown(text)}, allowed is text")
    if text is None and isinstance(token_ids, str):
        raise InvalidRequestError(f"the prompt dict's 'prompt_token_ids' is {shown(token_ids)}, allowed are token ids")
    return text if token_ids is None else token_ids, prompt.get("cache_salt")  # type: ignore[return-value]


def one_salt(of_call: object, of_prompt: object) -> str | None:
    """The salt, from whichever place has it."""
    for salt in (of_call, of_prompt):
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise InvalidRequestError(f"cache_salt is {shown(salt)}, allowed is a string of at least one character")
        _check_characters("cache_salt", salt or "x")
    if of_call is not None and of_prompt is not None and of_call != of_prompt:
        raise InvalidRequestError(
            f"cache_salt is {shown(of_call)}, but the prompt's is {shown(of_prompt)}: give one of them"
        )
    return of_call or of_prompt  # type: ignore[return-value]


def _token_ids(values: object, name: str = "the prompt") -> array[int]:
    if isinstance(values, (bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"a prompt is {type(values).__name__}, allowed are text, token ids and dicts of them")
    token_ids: list[Any] = []
    try:
        token_ids.extend(values)
        return array("q", token_ids)  # a prompt may be long: no loop in Python
    except (TypeError, OverflowError):
        wrong = next((one for one in token_ids if not _is_id(one)), values)
        raise InvalidRequestError(f"{name}'s token ids hold {shown(wrong)}, allowed are whole numbers") from None


def _is_id(value: object) -> bool:
    try:
        return abs(operator.index(value)) < 1 << 63  # type: ignore[arg-type]
    except TypeError:
        return False
