"""What each token reads as on its own, looked up once."""

from __future__ import annotations

from collections.abc import Callable


class TokenTexts(dict[int, str]):
    """Token id -> text, made when it is first asked for. Never larger than the vocabulary."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> str:
        self[token_id] = text = self._make(token_id)
        return text
