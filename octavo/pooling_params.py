"""PoolingParams: what a request wants of an embedding, with vLLM's names; and PooledForm, what a model gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.errors import InvalidRequestError
from octavo.shown import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledForm:
    """A model's embeddings. size: numbers in each. normalizes: whether their length is 1, unless a request says
    otherwise."""

    size: int
    normalizes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """dimensions: the first so many numbers of the embedding; normalised after the cut. use_activation: whether it is
    normalised; None: as the model's files say. truncate_prompt_tokens: the most tokens of a text, special ones
    included; -1: as many as the model takes; None: a longer text is an error. The end of the text is cut."""

    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_whole("dimensions", self.dimensions, 1)
        _check_whole("truncate_prompt_tokens", self.truncate_prompt_tokens, -1)
        if self.use_activation is not None and not isinstance(self.use_activation, bool):
            raise InvalidRequestError(
                f"use_activation is {shown(self.use_activation)}, allowed are True, False and None"
            )

    def clone(self, output_kind: object = None) -> PoolingParams:
        """Itself. output_kind: as in SamplingParams.clone; an embedding comes at once."""
        return self

    def checked_for(self, form: PooledForm) -> PoolingParams:
        """With nothing left to the model. Raises InvalidRequestError if its embeddings are shorter."""
        if self.dimensions is not None and self.dimensions > form.size:
            raise InvalidRequestError(
                f"dimensions is {self.dimensions}, allowed is 1 to {form.size}, the size of this model's embeddings"
            )
        normalizes = form.normalizes if self.use_activation is None else self.use_activation
        return replace(self, dimensions=self.dimensions or form.size, use_activation=normalizes)


def _check_whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 31 or value == 0:
        allowed = "-1 and whole numbers from 1 up" if least < 0 else "whole numbers from 1 up"
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed are None, {allowed}")
