"""One model read over a text and asked questions, alone or against a reference that was evaluated before it.

A reference's probabilities stay in a file until the comparison is done, so that one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from octavo.bench.quality import Advance, KeptScores, TextScore, Window, answers, score_text, windows
from octavo.bench.questions import Question
from octavo.bench.scoring_model import ScoringModel
from octavo.errors import ConfigError

#: draws a bar: from what is done and how much of it there is
Bar = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True, slots=True)
class Result:
    """held_as: the types of the weights, or how quantised ones are multiplied. text, num_right: of what was asked."""

    model: str
    backend: str
    held_as: str
    num_bytes: int
    text: TextScore | None = None
    num_questions: int = 0
    num_right: int = 0
    same_answers: float | None = None

    def facts(self) -> dict[str, Any]:
        facts = asdict(self)
        if self.text is not None:
            facts["text"] = asdict(self.text) | {"perplexity": self.text.perplexity}
        return facts


@dataclass(slots=True)
class Reference:
    """What of a model the next one is compared with."""

    label: str
    vocab_size: int
    parts: Sequence[Window]
    scores: KeptScores | None
    answers: list[int]

    def close(self) -> None:
        if self.scores is not None:
            self.scores.close()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """text: None if only questions are asked. num_tokens: of the text."""

    text: str | None
    num_tokens: int
    bar: Bar
    questions: Sequence[Question] = field(default=())

    def of_reference(self, label: str, model: ScoringModel) -> tuple[Result, Reference]:
        parts, scores = self._parts(model), None
        if parts:
            with self._bar(label, parts) as advance:
                scores = KeptScores(model, parts, advance)
        kept = Reference(label, model.vocab_size, parts, scores, self._answers(label, model))
        return self._result(label, model, None if scores is None else scores.score, kept.answers, None), kept

    def of_model(self, label: str, model: ScoringModel, reference: Reference | None) -> Result:
        parts, score = self._parts(model), None
        if reference is not None and (reference.vocab_size, reference.parts) != (model.vocab_size, parts):
            raise ConfigError(
                f"{label} and {reference.label} have different tokenizers or vocabularies, so their probabilities "
                "cannot be compared: name the model that this one was made of, or leave --reference out"
            )
        if parts:
            with self._bar(label, parts) as advance:
                score = score_text(model, parts, advance, None if reference is None else reference.scores)
        return self._result(label, model, score, self._answers(label, model), reference)

    def _parts(self, model: ScoringModel) -> list[Window]:
        return [] if self.text is None else windows(model.tokenizer, self.text, model.context, self.num_tokens)

    def _bar(self, label: str, parts: Sequence[Window]) -> AbstractContextManager[Advance]:
        return self.bar(f"{label}: tokens", sum(len(part.token_ids) - part.first for part in parts))

    def _answers(self, label: str, model: ScoringModel) -> list[int]:
        if not self.questions:
            return []
        with self.bar(f"{label}: questions", len(self.questions)) as advance:
            return answers(model, self.questions, advance)

    def _result(
        self, label: str, model: ScoringModel, text: TextScore | None, found: list[int], reference: Reference | None
    ) -> Result:
        right = sum(one == question.answer for one, question in zip(found, self.questions, strict=True))
        same = None
        if found and reference is not None:
            same = sum(one == other for one, other in zip(found, reference.answers, strict=True)) / len(found)
        given = (label, model.backend, model.held_as, model.num_bytes)
        return Result(*given, text, len(found), right, same)
