"""What a model has lost against another: perplexity and KL divergence over a text, and the share of questions right.

A text is read in windows of `context` tokens that overlap by half, and each token is scored once, with at least half a
window before it (but for the first window). For each the two models give probabilities p and q of the whole vocabulary:

    perplexity      exp of the mean of -log q(token)
    KL divergence   mean of sum over the vocabulary of p (log p - log q), in nats
    same best       share of tokens for which both would have chosen the same

A question has choices; the one with the largest log-probability for each of its characters is the answer.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.questions import Question
from octavo.bench.scoring_model import ScoringModel
from octavo.errors import ConfigError
from octavo.kernels.arrays import FloatArray
from octavo.text.tokenizer import Tokenizer

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Window:
    """first: the position of the first token that is scored."""

    token_ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class TextScore:
    """loss: the mean of -log q. The rest is against a reference: the standard error of the difference in loss, of
    tokens as if they were independent; divergence by token, and its largest hundredth."""

    num_tokens: int
    loss: float
    change_error: float | None = None
    divergence: float | None = None
    divergence_p99: float | None = None
    same_best: float | None = None

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


def windows(tokenizer: Tokenizer, text: str, context: int, num_tokens: int) -> list[Window]:
    """The first num_tokens of a text; a token that the model expects at the beginning is in every window."""
    tokens = tokenizer.encode(text, add_special_tokens=False)[:num_tokens]
    begin = [id for id in tokenizer.encode("")[:1] if id == tokenizer.bos_token_id]
    room = context - len(begin)
    found = [Window((*begin, *tokens[:room]), 1)]
    for end in range(room + room // 2, len(tokens) + room // 2, room // 2):
        scored = len(tokens[end - room // 2 : end])
        window = (*begin, *tokens[max(0, end - room) : end])
        found.append(Window(window, len(window) - scored))
    if len(found[0].token_ids) < 2:
        raise ConfigError(f"the text has {len(tokens)} tokens, needed are 2 or more: name a longer text")
    return found


class KeptScores:
    """A reference's log-probabilities of every scored token, in a file: two models need not be in memory at once."""

    def __init__(self, model: ScoringModel, parts: Sequence[Window], advance: Advance) -> None:
        count = sum(len(part.token_ids) - part.first for part in parts)
        self._folder = tempfile.TemporaryDirectory(prefix="octavo-eval-")
        _check_room(count * model.vocab_size * 4, self._folder.name)
        shape = (count, model.vocab_size)
        self.rows: Any = np.memmap(Path(self._folder.name) / "logprobs", np.float32, "w+", shape=shape)
        self.losses = _losses(model, parts, advance, self._keep)
        self.score = _score(self.losses)

    def _keep(self, place: int, rows: FloatArray) -> None:
        self.rows[place : place + len(rows)] = rows

    def close(self) -> None:
        del self.rows
        self._folder.cleanup()


def score_text(
    model: ScoringModel, parts: Sequence[Window], advance: Advance, reference: KeptScores | None = None
) -> TextScore:
    if reference is None:
        return _score(_losses(model, parts, advance, lambda place, rows: None))
    divergences: list[FloatArray] = []
    same = 0

    def compare(place: int, rows: FloatArray) -> None:
        nonlocal same
        expected = reference.rows[place : place + len(rows)]
        p = np.exp(expected)
        divergences.append(np.where(p > 0, p * (expected - rows), 0).sum(axis=1))
        same += int((expected.argmax(axis=1) == rows.argmax(axis=1)).sum())

    losses = _losses(model, parts, advance, compare)
    error = float((losses - reference.losses).std(dtype=np.float64)) / len(losses) ** 0.5
    each = np.concatenate(divergences)
    found = float(each.mean(dtype=np.float64)), float(np.quantile(each, 0.99)), same / len(losses)
    return TextScore(len(losses), float(losses.mean(dtype=np.float64)), error, *found)


def answers(model: ScoringModel, questions: Sequence[Question], advance: Advance) -> list[int]:
    """The choice that the model takes, for each question."""
    found = []
    for question in questions:
        found.append(int(np.argmax([_score_choice(model, question, choice) for choice in question.choices])))
        advance(1)
    return found


def _losses(
    model: ScoringModel, parts: Sequence[Window], advance: Advance, use: Callable[[int, FloatArray], None]
) -> FloatArray:
    """Of each scored token. use: gets the place of the first of some scored tokens, and their rows."""
    losses: list[FloatArray] = []
    place = 0
    for part in parts:
        following = np.array(part.token_ids[part.first :], np.int64)
        done = 0
        for rows in model.logprobs(part.token_ids, part.first):
            losses.append(-rows[np.arange(len(rows)), following[done : done + len(rows)]])
            use(place + done, rows)
            done += len(rows)
            advance(len(rows))
        place += done
    return np.concatenate(losses)


def _score(losses: FloatArray) -> TextScore:
    return TextScore(len(losses), float(losses.mean(dtype=np.float64)))


def _score_choice(model: ScoringModel, question: Question, choice: str) -> float:
    """For each character, so that a longer choice is not the less likely one for its length."""
    prompt = model.tokenizer.encode(question.prompt)
    token_ids = model.tokenizer.encode(question.prompt + choice)
    if len(token_ids) > model.context:
        raise ConfigError(
            f"{question.label} has {len(token_ids)} tokens with its longest choice, and --context is {model.context}: "
            "set it higher"
        )
    shared = next(
        (at for at, pair in enumerate(zip(prompt, token_ids, strict=False)) if pair[0] != pair[1]), len(prompt)
    )
    first = max(1, min(shared, len(token_ids) - 1))
    return sum(_taken(model.logprobs(token_ids, first), token_ids[first:])) / len(choice)


def _taken(rows: Iterator[FloatArray], token_ids: Sequence[int]) -> Iterator[float]:
    left = list(token_ids)
    for some in rows:
        yield float(some[np.arange(len(some)), left[: len(some)]].sum())
        left = left[len(some) :]


def _check_room(needed: int, folder: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"the reference's probabilities take {needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are "
            "free: set --num-tokens lower, or TMPDIR to a folder on another disk"
        )
