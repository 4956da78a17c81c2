"""Log-probabilities that are decoded when read: like a list, and each token's text is looked up once."""

from __future__ import annotations

import pytest

from octavo.engine.lazy_logprobs import LogprobRows, named, pack_rows
from octavo.messages import LogprobRow
from octavo.text.detokenizer import TokenTexts

ROWS = [LogprobRow([number, 5, 6], [-0.5, -1.0, -2.0], 3) for number in range(700)]


def test_they_read_like_a_list() -> None:
    asked: list[int] = []

    def text(token_id: int) -> str:
        asked.append(token_id)
        return f"<{token_id}>"

    texts = TokenTexts(text)
    expected = [None, *(named(row, TokenTexts("<{}>".format)) for row in ROWS)]
    rows = LogprobRows(texts)
    rows.append(None)
    rows.extend(pack_rows(ROWS[:600]))
    assert asked == []
    before = rows.copy()
    for row in ROWS[600:]:
        rows.append(row)
    assert len(rows) == 701
    assert rows == expected
    assert (rows[0], rows[1], rows[-1]) == (None, expected[1], expected[-1])
    assert rows[598:603] == expected[598:603]
    assert before == expected[:601]
    assert sorted(asked) == list(range(700)), "each is looked up once"
    with pytest.raises(IndexError):
        rows[701]


def test_without_a_tokenizer_there_is_no_text() -> None:
    rows = LogprobRows(None)
    rows.extend(pack_rows(ROWS[:1]))
    assert [one.decoded_token for row in rows for one in (row or {}).values()] == [None] * 3


def test_packed_rows_are_pieces_that_are_read_quickly() -> None:
    assert [piece.num_rows for piece in pack_rows(ROWS)] == [256, 256, 188]
    assert pack_rows([]) == []
