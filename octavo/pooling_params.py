"""PoolingParams: what a request wants of a model that pools, with vLLM's names; and PooledForm, what a model gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from octavo.checked_parameters import assignable
from octavo.errors import InvalidRequestError
from octavo.shown import shown
from octavo.vllm_options import POOLING_FIELDS

#: what a request may be for: numbers of the whole text, or of each of its tokens
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
ClassActivation = Literal["softmax", "sigmoid", "identity"]
#: the task of every token -> that of the text
_OF_TOKENS = ("token_embed", "token_classify")
#: what a model does, and the calls for it
_DOES = {
    "embed": ("embeds", "embed (POST /v1/embeddings)"),
    "classify": ("classifies", "classify (POST /classify)"),
    "token_classify": ("classifies the tokens of", "encode (POST /pooling)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledForm:
    """What a model gives. size: numbers in each embedding, or classes. normalizes: whether an embedding's length is 1,
    unless a request says otherwise. tasks: what may be asked. labels: the classes' names; none: it embeds.
    activation: what makes their probabilities. takes_types: whether it tells a pair's texts apart by their types."""

    size: int
    normalizes: bool = True
    tasks: tuple[PoolingTask, ...] = ("embed", "token_embed")
    labels: tuple[str, ...] = ()
    activation: ClassActivation = "softmax"
    takes_types: bool = False

    @property
    def scores_pairs(self) -> bool:
        """Whether it is a cross-encoder: its one class says how well two texts fit."""
        return "classify" in self.tasks and self.size == 1

    @property
    def does(self) -> str:
        """What it does with texts, for messages."""
        return _DOES[self.tasks[0]][0]

    @property
    def how(self) -> str:
        """The call that asks for that."""
        return _DOES[self.tasks[0]][1]

    @property
    def usual_task(self) -> PoolingTask:
        """Of a call of `/pooling` that names none, as in vLLM."""
        return next((task for task in self.tasks if task in _OF_TOKENS), self.tasks[0])


@assignable(POOLING_FIELDS, {})
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """task: what is asked; None: the model's own. dimensions: the first so many numbers of an embedding; normalised
    after the cut. use_activation: whether an embedding is normalised, or classes get probabilities; None: as the
    model's files say. truncate_prompt_tokens: the most tokens of a text, special ones included; -1: as many as the
    model takes; None: a longer text is an error. The end of the text is cut."""

    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    task: PoolingTask | None = None

    def __post_init__(self) -> None:
        _check_whole("dimensions", self.dimensions, 1)
        _check_whole("truncate_prompt_tokens", self.truncate_prompt_tokens, -1)
        if self.use_activation is not None and not isinstance(self.use_activation, bool):
            raise InvalidRequestError(
                f"use_activation is {shown(self.use_activation)}, allowed are True, False and None"
            )
        if self.task is not None and (not isinstance(self.task, str) or self.task not in get_args(PoolingTask)):
            raise InvalidRequestError(
                f"task is {shown(self.task)}, allowed are None, {', '.join(get_args(PoolingTask))}"
            )

    @property
    def of_tokens(self) -> bool:
        return self.task in _OF_TOKENS

    def clone(self, output_kind: object = None) -> PoolingParams:
        """Itself. output_kind: as in SamplingParams.clone; an embedding comes at once."""
        return self

    def checked_for(self, form: PooledForm) -> PoolingParams:
        """With nothing left to the model. Raises InvalidRequestError if the model cannot do it."""
        task = self.task or form.tasks[0]
        if task not in form.tasks:
            raise InvalidRequestError(
                f"the task is {task!r}, but this model {form.does} texts: allowed is {', '.join(form.tasks)}; call "
                f"{form.how}"
            )
        if form.labels and self.dimensions is not None:
            raise InvalidRequestError(f"dimensions is {self.dimensions}, but this model classifies: leave it out")
        if self.dimensions is not None and self.dimensions > form.size:
            raise InvalidRequestError(
                f"dimensions is {self.dimensions}, allowed is 1 to {form.size}, the size of this model's embeddings"
            )
        activates = form.normalizes if self.use_activation is None else self.use_activation
        dimensions = None if form.labels else self.dimensions or form.size
        return replace(self, task=task, dimensions=dimensions, use_activation=activates)


def _check_whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 31 or value == 0:
        allowed = "-1 and whole numbers from 1 up" if least < 0 else "whole numbers from 1 up"
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed are None, {allowed}")
