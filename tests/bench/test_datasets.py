"""A benchmark's requests: exact lengths, the same for the same seed, and files that are read or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.bench.datasets import (
    BenchRequest,
    Pick,
    as_text,
    custom_requests,
    long_prompts,
    named_requests,
    random_requests,
    sharegpt_requests,
    shifted,
    stall_requests,
)
from octavo.bench.workloads import NAMED
from octavo.errors import ConfigError


def ids(request: BenchRequest) -> tuple[int, ...]:
    assert isinstance(request.prompt, tuple)
    return request.prompt


def test_random_lengths_and_prefix() -> None:
    requests = random_requests(200, 100, 50, range_ratio=0.2, prefix_len=7, vocab_size=1000, seed=3)
    assert requests == random_requests(200, 100, 50, range_ratio=0.2, prefix_len=7, vocab_size=1000, seed=3)
    assert {ids(request)[:7] for request in requests} == {ids(requests[0])[:7]}
    lens = [request.num_prompt_tokens - 7 for request in requests]
    assert min(lens) == 80
    assert max(lens) == 120
    assert {request.output_len for request in requests} == set(range(40, 61))
    assert all(100 <= token < 1000 for request in requests for token in ids(request))
    assert all(len(ids(request)) == request.num_prompt_tokens for request in requests)


def test_named_shapes_are_the_engines_own() -> None:
    requests = named_requests("mixed")
    assert [ids(request) for request in requests] == [work.prompt_token_ids for work in NAMED["mixed"]()]
    assert named_requests("fanout")[0].n == 32
    folded = named_requests("mixed", vocab_size=500)
    assert [len(ids(request)) for request in folded] == [len(ids(request)) for request in requests]
    assert max(token for request in folded for token in ids(request)) < 500
    assert len({ids(request) for request in folded}) == len(requests)


def test_another_run_has_other_tokens_of_the_same_lengths() -> None:
    requests = stall_requests(1000)
    moved = shifted(requests, 1, 1000)
    assert [(request.num_prompt_tokens, request.output_len) for request in requests] == [
        (request.num_prompt_tokens, request.output_len) for request in moved
    ]
    assert not {ids(request)[:16] for request in requests} & {ids(request)[:16] for request in moved}
    assert all(100 <= token < 1000 for request in moved for token in ids(request))


def test_long_prompts_share_no_beginning() -> None:
    prompts = long_prompts(20, 64)
    assert len({ids(request)[:16] for request in prompts}) == 20
    assert all(request.output_len == 1 and len(ids(request)) == 64 for request in prompts)


def test_ids_become_text_and_text_stays() -> None:
    requests = as_text([BenchRequest((1, 2), 3, 1, 2), BenchRequest("x", 4)], lambda some: "-".join(map(str, some)))
    assert requests == [BenchRequest("1-2", 3, 1, 2), BenchRequest("x", 4)]


def test_custom_lines(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": [1, 2], "output_tokens": 9}\n', encoding="utf-8")
    requests = custom_requests(str(path), Pick(3, shuffle=False), None)
    assert requests == [BenchRequest("a", 256), BenchRequest((1, 2), 9, 1, 2), BenchRequest("a", 256)]
    assert [request.output_len for request in custom_requests(str(path), Pick(2), 5)] == [5, 5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1 is not valid JSON"),
        ('{"text": "a"}', 'line 1 has no "prompt"'),
        ('{"prompt": ["a"]}', 'line 1 has no "prompt"'),
        ('{"prompt": ""}', 'line 1 has no "prompt"'),
        ('{"prompt": "a", "output_tokens": 0}', 'has "output_tokens" 0, allowed is 1 or more'),
        ('{"prompt": "a", "output_tokens": "9"}', "has \"output_tokens\" '9'"),
        ("", "has no usable prompt"),
    ],
)
def test_custom_lines_that_cannot_be_asked(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        custom_requests(str(path), Pick(1), None)


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
    assert sharegpt_requests(str(path), Pick(2), None, encode) == [BenchRequest("w " * 5, 6, 1, 5)] * 2
    assert sharegpt_requests(str(path), Pick(1), 33, encode)[0].output_len == 33
    assert len(sharegpt_requests(str(path), Pick(5), 33, None)) == 5
    assert len(sharegpt_requests(str(path), Pick(5, oversample=False), None, encode)) == 1


def test_sharegpt_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    with pytest.raises(ConfigError, match=r"^--dataset-path \S+ cannot be read"):
        sharegpt_requests(str(path), Pick(1), None, encode)
    path.write_text('[{"text": 1}]', encoding="utf-8")
    with pytest.raises(ConfigError, match="is not ShareGPT's JSON"):
        sharegpt_requests(str(path), Pick(1), None, encode)
    with pytest.raises(ConfigError, match="--sharegpt-output-len"):
        sharegpt_requests(str(path), Pick(1), None, None)
