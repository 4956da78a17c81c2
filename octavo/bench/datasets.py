"""The requests of a server benchmark: random, of a fixed shape, or read from a file.

random                 lengths around a mean, token ids from a seed, a shared prefix
single .. longctx      the fixed workloads of workloads.py
stall                  steady short chats, to measure the effect of long prompts (which load.py adds)
sharegpt, custom       conversations of ShareGPT's file; lines of JSON

Prompts of token ids have an exact length, whatever the server's tokenizer. Prompts from files are text; the server's
usage reports their length.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.bench.workloads import NAMED, Work
from octavo.errors import ConfigError

#: ids are drawn below this unless the vocabulary is known; all common vocabularies have ordinary tokens there
SAFE_VOCAB_SIZE = 30_000
STALL_NUM_PROMPTS, STALL_INPUT_LEN, STALL_OUTPUT_LEN = 240, 128, 128
#: limits by which ShareGPT is pruned, as in vLLM
SHAREGPT_MIN_LEN, SHAREGPT_MAX_PROMPT_LEN, SHAREGPT_MAX_TOTAL_LEN = 4, 1024, 2048

CUSTOM_OUTPUT_LEN = 256  # for a line without output_tokens
#: switches about files -> what they do
OF_FILES = {
    "disable_shuffle": "keep the order of the file's prompts",
    "no_oversample": "send each prompt of the file once at most, even if --num-prompts asks for more",
}

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request. num_prompt_tokens: 0 if only the server knows."""

    prompt: str | tuple[int, ...]
    output_len: int
    n: int = 1
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pick:
    """Which of a file's prompts are sent. oversample: they repeat from the front if there are too few."""

    num_prompts: int
    seed: int = 0
    shuffle: bool = True
    oversample: bool = True


def random_requests(
    num_prompts: int,
    input_len: int,
    output_len: int,
    *,
    range_ratio: float = 0.0,
    prefix_len: int = 0,
    vocab_size: int = SAFE_VOCAB_SIZE,
    seed: int = 0,
) -> list[BenchRequest]:
    """Lengths uniform from (1 - range_ratio) to (1 + range_ratio) times the mean, after a shared prefix."""
    if not 0.0 <= range_ratio < 1.0:
        raise ConfigError(f"--random-range-ratio is {range_ratio}, allowed is 0 to below 1")
    rng = random.Random(seed)
    draw = _ids(rng, vocab_size)
    prefix = draw(prefix_len)
    requests = []
    for _ in range(num_prompts):
        ids = prefix + draw(_around(rng, input_len, range_ratio))
        requests.append(BenchRequest(ids, _around(rng, output_len, range_ratio), 1, len(ids)))
    return requests


def named_requests(name: str, vocab_size: int | None = None) -> list[BenchRequest]:
    """A workload of workloads.py, with its ids folded into a smaller vocabulary if needed."""
    return [_of_work(work, vocab_size) for work in NAMED[name]()]


def stall_requests(vocab_size: int = SAFE_VOCAB_SIZE) -> list[BenchRequest]:
    return random_requests(STALL_NUM_PROMPTS, STALL_INPUT_LEN, STALL_OUTPUT_LEN, vocab_size=vocab_size, seed=6)


def long_prompts(
    num_prompts: int, input_len: int, vocab_size: int = SAFE_VOCAB_SIZE, seed: int = 0
) -> list[BenchRequest]:
    """Prompts that are in no prefix cache, for one token each: only prefill."""
    return random_requests(num_prompts, input_len, 1, vocab_size=vocab_size, seed=seed + 1_000_003)


def custom_requests(path: str, pick: Pick, output_len: int | None) -> list[BenchRequest]:
    """Lines of {"prompt": text or token ids, "output_tokens": N}; output_len overrides a line's own number."""
    requests = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            requests.append(_of_line(line, f"{path}, line {number}", output_len))
    return _choose(requests, path, pick)


def sharegpt_requests(path: str, pick: Pick, output_len: int | None, encode: Encode | None) -> list[BenchRequest]:
    """The first two turns of each conversation: the question, and the answer's length, measured with `encode` or given
    as `output_len`."""
    if encode is None and output_len is None:
        raise ConfigError(
            "--dataset-name sharegpt takes the length of each answer from a tokenizer: give --tokenizer, "
            "or one length for all with --sharegpt-output-len"
        )
    text = _read(path)
    try:
        conversations = json.loads(text)
        turns = [entry["conversations"][:2] for entry in conversations if len(entry["conversations"]) >= 2]
        pairs = [(first["value"], second["value"]) for first, second in turns]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'--dataset-path {path} is not ShareGPT\'s JSON, a list of {{"conversations": [{{"value": TEXT}}, ...]}}: '
            f"{type(error).__name__}: {error}"
        ) from None
    if pick.shuffle:
        random.Random(pick.seed).shuffle(pairs)
    requests: list[BenchRequest] = []
    for prompt, answer in pairs:
        if len(requests) == pick.num_prompts:
            break
        request = _of_pair(prompt, answer, output_len, encode)
        if request is not None:
            requests.append(request)
    return _choose(requests, path, replace(pick, shuffle=False))


def shifted(requests: list[BenchRequest], by: int, vocab_size: int | None) -> list[BenchRequest]:
    """The same lengths with other tokens, for another run on a server that has these in its prefix cache."""
    end = vocab_size or max((max(one.prompt) for one in requests if isinstance(one.prompt, tuple)), default=0) + 1
    first = end // 10

    def shift(one: BenchRequest) -> BenchRequest:
        if isinstance(one.prompt, str):
            return one
        return replace(one, prompt=tuple(first + (token - first + by) % (end - first) for token in one.prompt))

    return [shift(one) for one in requests]


def as_text(requests: list[BenchRequest], decode: Callable[[tuple[int, ...]], str]) -> list[BenchRequest]:
    """Token ids as text, for servers that take only text. The server may tokenise it differently."""
    return [one if isinstance(one.prompt, str) else replace(one, prompt=decode(one.prompt)) for one in requests]


def _around(rng: random.Random, mean: int, ratio: float) -> int:
    return rng.randint(max(1, math.floor(mean * (1 - ratio))), max(1, math.ceil(mean * (1 + ratio))))


def _ids(rng: random.Random, vocab_size: int) -> Callable[[int], tuple[int, ...]]:
    """Skips the lowest tenth of the vocabulary, where special tokens are."""
    ids = range(vocab_size // 10, vocab_size)
    return lambda length: tuple(rng.choices(ids, k=length))


def _of_work(work: Work, vocab_size: int | None) -> BenchRequest:
    ids = work.prompt_token_ids
    if vocab_size is not None:
        first = vocab_size // 10
        ids = tuple(token if token < vocab_size else first + token % (vocab_size - first) for token in ids)
    return BenchRequest(ids, work.output_len, work.n, len(ids))


def _of_line(line: str, where: str, output_len: int | None) -> BenchRequest:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    is_ids = isinstance(prompt, list) and all(type(token) is int and token >= 0 for token in prompt)
    if not prompt or not (isinstance(prompt, str) or is_ids):
        raise ConfigError(f'{where} has no "prompt" that is a text or a list of token ids: {line[:80]}')
    length = entry.get("output_tokens", CUSTOM_OUTPUT_LEN) if output_len is None else output_len
    if type(length) is not int or length < 1:
        raise ConfigError(f'{where} has "output_tokens" {length!r}, allowed is 1 or more')
    return BenchRequest(tuple(prompt), length, 1, len(prompt)) if is_ids else BenchRequest(prompt, length)


def _of_pair(prompt: Any, answer: Any, output_len: int | None, encode: Encode | None) -> BenchRequest | None:
    """None for a pair that is pruned. Without a tokenizer, only empty prompts are."""
    if not isinstance(prompt, str) or not isinstance(answer, str) or not prompt:
        return None
    if encode is None:
        assert output_len is not None, "checked by the caller"
        return BenchRequest(prompt, output_len)
    prompt_len = len(encode(prompt))
    answer_len = len(encode(answer)) if output_len is None else output_len
    is_short = prompt_len < SHAREGPT_MIN_LEN or (output_len is None and answer_len < SHAREGPT_MIN_LEN)
    is_long = prompt_len > SHAREGPT_MAX_PROMPT_LEN or prompt_len + answer_len > SHAREGPT_MAX_TOTAL_LEN
    return None if is_short or is_long else BenchRequest(prompt, answer_len, 1, prompt_len)


def _choose(requests: list[BenchRequest], path: str, pick: Pick) -> list[BenchRequest]:
    """Exactly num_prompts requests, where prompts may repeat; as in vLLM."""
    if not requests:
        raise ConfigError(f"--dataset-path {path} has no usable prompt; check the file")
    if pick.shuffle:
        random.Random(pick.seed).shuffle(requests)
    num = pick.num_prompts if pick.oversample else min(pick.num_prompts, len(requests))
    return [requests[index % len(requests)] for index in range(num)]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error}") from None
