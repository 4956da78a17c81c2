"""What a server is asked: exact lengths, the same for the same seed, and files read or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.bench.datasets import (
    Ask,
    as_text,
    custom_asks,
    long_prompts,
    named_asks,
    random_asks,
    sharegpt_asks,
    shifted,
    stall_asks,
)
from octavo.bench.workloads import NAMED
from octavo.errors import ConfigError


def ids(ask: Ask) -> tuple[int, ...]:
    assert isinstance(ask.prompt, tuple)
    return ask.prompt


def test_random_lengths_and_prefix() -> None:
    asks = random_asks(200, 100, 50, range_ratio=0.2, prefix_len=7, vocab_size=1000, seed=3)
    assert asks == random_asks(200, 100, 50, range_ratio=0.2, prefix_len=7, vocab_size=1000, seed=3)
    assert {ids(ask)[:7] for ask in asks} == {ids(asks[0])[:7]}
    lens = [ask.num_prompt_tokens - 7 for ask in asks]
    assert min(lens) == 80
    assert max(lens) == 120
    assert {ask.output_len for ask in asks} == set(range(40, 61))
    assert all(100 <= token < 1000 for ask in asks for token in ids(ask))
    assert all(len(ids(ask)) == ask.num_prompt_tokens for ask in asks)


def test_named_shapes_are_the_engines_own() -> None:
    asks = named_asks("mixed")
    assert [ids(ask) for ask in asks] == [work.prompt_token_ids for work in NAMED["mixed"]()]
    assert named_asks("fanout")[0].n == 32
    folded = named_asks("mixed", vocab_size=500)
    assert [len(ids(ask)) for ask in folded] == [len(ids(ask)) for ask in asks]
    assert max(token for ask in folded for token in ids(ask)) < 500
    assert len({ids(ask) for ask in folded}) == len(asks)


def test_another_run_has_other_tokens_of_the_same_lengths() -> None:
    asks = stall_asks(1000)
    moved = shifted(asks, 1, 1000)
    assert [(ask.num_prompt_tokens, ask.output_len) for ask in asks] == [
        (ask.num_prompt_tokens, ask.output_len) for ask in moved
    ]
    assert not {ids(ask)[:16] for ask in asks} & {ids(ask)[:16] for ask in moved}
    assert all(100 <= token < 1000 for ask in moved for token in ids(ask))


def test_long_prompts_share_no_beginning() -> None:
    prompts = long_prompts(20, 64)
    assert len({ids(ask)[:16] for ask in prompts}) == 20
    assert all(ask.output_len == 1 and len(ids(ask)) == 64 for ask in prompts)


def test_ids_become_text_and_text_stays() -> None:
    asks = as_text([Ask((1, 2), 3, 1, 2), Ask("x", 4)], lambda some: "-".join(map(str, some)))
    assert asks == [Ask("1-2", 3, 1, 2), Ask("x", 4)]


def test_custom_lines(tmp_path: Path) -> None:
    path = tmp_path / "asks.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": [1, 2], "output_tokens": 9}\n', encoding="utf-8")
    asks = custom_asks(str(path), 3, None, seed=0, shuffle=False)
    assert asks == [Ask("a", 256), Ask((1, 2), 9, 1, 2), Ask("a", 256)]
    assert [ask.output_len for ask in custom_asks(str(path), 2, 5, seed=0)] == [5, 5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1 is no JSON"),
        ('{"text": "a"}', 'line 1 has no "prompt"'),
        ('{"prompt": ["a"]}', 'line 1 has no "prompt"'),
        ('{"prompt": ""}', 'line 1 has no "prompt"'),
        ('{"prompt": "a", "output_tokens": 0}', 'has "output_tokens" 0, allowed is 1 or more'),
        ('{"prompt": "a", "output_tokens": "9"}', "has \"output_tokens\" '9'"),
        ("", "holds no prompt that can be used"),
    ],
)
def test_custom_lines_that_cannot_be_asked(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "asks.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        custom_asks(str(path), 1, None, seed=0)


def conversation(*turns: str) -> dict[str, Any]:
    return {"conversations": [{"from": "x", "value": turn} for turn in turns]}


def encode(text: str) -> list[int]:
    return list(range(len(text.split())))


def test_sharegpt_is_pruned_and_has_the_lengths_of_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    good = conversation("w " * 5, "w " * 6, "more")
    pruned = [
        conversation("w " * 5),
        conversation("w " * 3, "w " * 6),
        conversation("w " * 5, "w " * 3),
        conversation("w " * 1025, "w " * 6),
        conversation("w " * 1000, "w " * 1049),
    ]
    path.write_text(json.dumps([*pruned, good]), encoding="utf-8")
    assert sharegpt_asks(str(path), 2, None, 0, encode) == [Ask("w " * 5, 6, 1, 5)] * 2
    assert sharegpt_asks(str(path), 1, 33, 0, encode)[0].output_len == 33
    assert len(sharegpt_asks(str(path), 5, 33, 0, None)) == 5


def test_sharegpt_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        sharegpt_asks(str(path), 1, None, 0, encode)
    path.write_text('[{"text": 1}]', encoding="utf-8")
    with pytest.raises(ConfigError, match="is not ShareGPT's JSON"):
        sharegpt_asks(str(path), 1, None, 0, encode)
    with pytest.raises(ConfigError, match="--sharegpt-output-len"):
        sharegpt_asks(str(path), 1, None, 0, None)
