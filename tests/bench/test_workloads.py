"""Workloads: the same requests for every engine in every run."""

from octavo.bench.workloads import NAMED, RAGGED16_LENS, ragged16, random_workload


def test_the_same_seed_draws_the_same_tokens() -> None:
    first = random_workload(3, 8, 5, n=2, vocab_size=1000, seed=4)
    assert first == random_workload(3, 8, 5, n=2, vocab_size=1000, seed=4)
    assert first != random_workload(3, 8, 5, n=2, vocab_size=1000, seed=5)
    assert [len(work.prompt_token_ids) for work in first] == [8, 8, 8]
    assert [work.num_output_tokens for work in first] == [10, 10, 10]


def test_tokens_are_ordinary_words_of_the_vocabulary() -> None:
    tokens = {token for work in random_workload(20, 50, 1, vocab_size=100) for token in work.prompt_token_ids}
    assert min(tokens) >= 10
    assert max(tokens) < 100


def test_ragged16_goes_round() -> None:
    workload = ragged16(18, 128, vocab_size=1000)
    assert [len(work.prompt_token_ids) for work in workload] == [*RAGGED16_LENS, *RAGGED16_LENS[:2]]
    assert len(RAGGED16_LENS) == 16
    assert workload[0].prompt_token_ids != workload[16].prompt_token_ids


def test_named_workloads_are_fixed() -> None:
    totals = {
        name: (sum(len(work.prompt_token_ids) for work in made), sum(work.num_output_tokens for work in made))
        for name, made in ((name, make()) for name, make in NAMED.items())
    }
    assert totals == {
        "single": (512, 256),
        "mixed": (141_884, 148_658),
        "chat": (146_620, 314_205),
        "prefill": (196_608, 24),
        "fanout": (32_768, 65_536),
        "longctx": (256_000, 2048),
    }
