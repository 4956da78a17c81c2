"""The whole engine on a GPU, against transformers: the checks of `tests/test_greedy.py`, and that decode steps as
graphs draw the same tokens as steps launched from the host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from octavo import LLM, RequestOutput, SamplingParams  # noqa: E402
from octavo.errors import EngineDeadError, OutOfMemoryError  # noqa: E402
from octavo.kernels.cuda.step import GraphMemory, StepKind  # noqa: E402
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan  # noqa: E402
from octavo.kernels.cuda_cpp.compile import find_nvcc  # noqa: E402
from octavo.observe.events import EngineStarted, Preempted  # noqa: E402
from octavo.worker.chunk_graphs import ChunkSteps  # noqa: E402
from tests.conftest import TinyFolder  # noqa: E402
from tests.engine import test_overlap as overlap  # noqa: E402
from tests.structured.spelling_model import spelling_model  # noqa: E402
from tests.test_greedy import GREEDY, MAX_MODEL_LEN, check_greedy, logprobs, prompts_of, tokens  # noqa: E402
from tests.tiny_models import TINY  # noqa: E402
from tests.worker import test_runner as draws  # noqa: E402

BLOCK_SIZE = 16
#: root mean square of log-probabilities' errors in bfloat16, which has 8 bits: scores here are about 10
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.1}
NUM_MASKED = 36
SAMPLED = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, detokenize=False, seed=5)


def engine(folder: Path, **options: Any) -> LLM:
    options = {
        "dtype": "float32",
        "max_num_seqs": 32,
        "max_model_len": MAX_MODEL_LEN,
        "num_gpu_blocks_override": 400,
    } | options
    return LLM(str(folder), backend="triton", skip_tokenizer_init=True, check_invariants=True, **options)


def samples(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[sequence.token_ids for sequence in output.outputs] for output in outputs]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_guesses_change_no_answer(name: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(tiny_folder(name), max_num_seqs=6, block_size=BLOCK_SIZE) as llm:
        plain = draws.generate(llm)
        computed = draws.guess_next_tokens(monkeypatch, plain)
        guessed = draws.generate(llm)
        assert llm.stats().num_used_blocks == 0
    assert max(computed) > 8
    assert samples(guessed) == samples(plain)


@pytest.mark.parametrize("name", TINY)
def test_float32_tokens_equal_transformers(name: str, tiny_folder: TinyFolder) -> None:
    if name == "gpt-oss" and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("transformers 5.17 gives other tokens than 5.23, which the CPU's are compared with")
    folder = tiny_folder(name)
    with engine(folder, block_size=BLOCK_SIZE, max_num_batched_tokens=50) as llm:
        outputs = llm.generate(prompts_of(BLOCK_SIZE), GREEDY, use_tqdm=False)
        check_greedy(folder, outputs)
        expected = tokens(outputs)
        again = llm.generate(prompts_of(BLOCK_SIZE), GREEDY, use_tqdm=False)  # now from the prefix tree, and graphs
        assert tokens(again) == expected
        assert all(output.num_cached_tokens > 0 for output in again if len(output.prompt_token_ids) > BLOCK_SIZE)
        assert llm.stats().num_used_blocks == 0
        start = next(event for event in llm.events if isinstance(event, EngineStarted))
        num_blocks = -(-MAX_MODEL_LEN // BLOCK_SIZE) * start.num_groups + 1
    with engine(folder, block_size=BLOCK_SIZE, num_gpu_blocks_override=num_blocks) as llm:
        forks = llm.generate(prompts_of(BLOCK_SIZE), GREEDY.replace(n=3), use_tqdm=False)
        assert samples(forks) == [[answer] * 3 for answer in expected]
        assert any(isinstance(event, Preempted) for event in llm.events)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in ("llama", "qwen3", "gemma3", "gpt2")]
    + [(name, "bfloat16") for name in ("llama", "qwen3", "gemma3")],
)
def test_logprobs_equal_transformers(name: str, dtype: str, tiny_folder: TinyFolder) -> None:
    """float32 tokens, too."""
    folder = tiny_folder(name)
    with engine(folder, dtype=dtype, max_num_batched_tokens=40) as llm:
        outputs = llm.generate(prompts_of(1), GREEDY.replace(logprobs=4, prompt_logprobs=3), use_tqdm=False)
    if dtype == "float32":
        check_greedy(folder, outputs)
    errors: list[float] = []
    for output in outputs:
        rows = [*(output.prompt_logprobs or []), *(output.outputs[0].logprobs or [])]
        sequence = output.prompt_token_ids + output.outputs[0].token_ids
        truth = logprobs(folder, tuple(sequence))
        for position in range(1, len(sequence)):
            row = rows[position]
            assert row is not None
            assert sequence[position] in row
            errors += [entry.logprob - truth[position - 1][token_id] for token_id, entry in row.items()]
    assert np.sqrt(np.mean(np.square(errors))) < TOLERANCE[dtype]


def test_a_seed_draws_the_same_tokens_in_every_company(tiny_folder: TinyFolder) -> None:
    prompts = prompts_of(2)
    asks = [SAMPLED, SAMPLED.replace(top_p=0.8, n=2), SAMPLED.replace(top_k=9, temperature=0.6)]
    asks += [SAMPLED.replace(presence_penalty=0.5), SAMPLED.replace(min_p=0.1, logit_bias={7: 3.0}), GREEDY]
    with engine(tiny_folder("llama")) as llm:
        alone = [samples(llm.generate([one], ask, use_tqdm=False))[0] for one, ask in zip(prompts, asks, strict=True)]
        assert samples(llm.generate(prompts, asks, use_tqdm=False)) == alone
        assert samples(llm.generate(prompts, asks, use_tqdm=False)) == alone
    with LLM(str(tiny_folder("llama")), dtype="float32", backend="reference", skip_tokenizer_init=True) as reference:
        assert samples(reference.generate(prompts, asks, use_tqdm=False)) == alone


def without_logprobs(answers: list[Any]) -> list[Any]:
    """Only tokens, reasons and stops: a step of another size sums in another order, so log-probabilities differ."""
    return [[completion[:3] for completion in answer[:-1]] for answer in answers]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_steps_launched_ahead_give_the_plain_engines_tokens(name: str, tiny_folder: TinyFolder) -> None:
    """With stops, samples, penalties, log-probabilities, prefix hits, and preemption."""
    with engine(tiny_folder(name), max_model_len=96, async_scheduling=False) as plain:
        expected = overlap.answers(plain)
        start = next(event for event in plain.events if isinstance(event, EngineStarted))
    with engine(tiny_folder(name), max_model_len=96, max_num_batched_tokens=40) as ahead:
        assert without_logprobs(overlap.answers(ahead)) == without_logprobs(expected)
        assert without_logprobs(overlap.answers(ahead)) == without_logprobs(expected)
        assert ahead.stats().num_used_blocks == 0
    tight = -(-96 // start.block_size) * start.num_groups + 1
    eager = {"num_gpu_blocks_override": tight, "schedule_conservativeness": 0}
    with engine(tiny_folder(name), max_model_len=96, **eager) as ahead:
        assert without_logprobs(overlap.answers(ahead)) == without_logprobs(expected)
        assert any(isinstance(event, Preempted) for event in ahead.events)


def test_a_pool_that_does_not_fit_is_refused_with_the_numbers(tiny_folder: TinyFolder) -> None:
    with pytest.raises(OutOfMemoryError, match=r"the KV pool of .* blocks takes .* set kv_cache_memory_bytes to \d+"):
        engine(tiny_folder("llama"), num_gpu_blocks_override=1 << 28)


def test_close_gives_the_memory_back(tiny_folder: TinyFolder) -> None:
    """Even while something still references the closed engine."""
    with engine(tiny_folder("llama")) as llm:
        llm.generate([[3, 4]], GREEDY, use_tqdm=False)
    before = torch.cuda.memory_reserved()
    with engine(tiny_folder("llama"), num_gpu_blocks_override=1 << 16) as llm:
        llm.generate([[3, 4]], GREEDY, use_tqdm=False)
        assert torch.cuda.memory_reserved() >= before + (1 << 26)
    assert torch.cuda.memory_reserved() < before + (1 << 25)
    with pytest.raises(EngineDeadError, match="was closed"):
        llm.generate([[3, 4]], GREEDY, use_tqdm=False)


def test_a_servers_first_start_compiles_ahead_and_gives_the_same_tokens(
    tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    caches = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "OCTAVO_CACHE_DIR": str(tmp_path / "octavo")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.first_start", str(tiny_folder("qwen3"))],
        env=os.environ | caches, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    started = json.loads(done.stdout.splitlines()[-1])
    assert started["compiled"] == [], "all were compiled by the time they were run"
    assert len(started["found"]) > 10
    assert started["late"] == [], "no request waits for a compiler"
    with engine(tiny_folder("qwen3")) as llm:
        assert started["tokens"] == tokens(llm.generate(prompts_of(7), GREEDY, use_tqdm=False))


def test_abort_and_stop(tiny_folder: TinyFolder) -> None:
    prompts = prompts_of(3)
    with engine(tiny_folder("llama")) as llm:
        whole = tokens(llm.generate(prompts, GREEDY, use_tqdm=False))
        for output in llm.stream(prompts, GREEDY):
            if len(output.outputs[0].token_ids) > 3:
                break
        assert not llm.stats().num_running
        assert llm.stats().num_used_blocks == 0
        stop = whole[0][4]
        (stopped,) = llm.generate(prompts[:1], GREEDY.replace(stop_token_ids=[stop]), use_tqdm=False)
        assert stopped.outputs[0].token_ids == whole[0][: whole[0].index(stop) + 1]
        assert stopped.outputs[0].finish_reason == "stop"
        assert tokens(llm.generate(prompts, GREEDY, use_tqdm=False)) == whole


def test_steps_with_chunks_as_graphs_give_the_same_tokens(tiny_folder: TinyFolder, monkeypatch: Any) -> None:
    """Launched the first time, captured the second, replayed the third; then without any graph."""
    prompts = [list(range(3, 3 + length)) for length in (1, 60, 17, 90)]
    with engine(tiny_folder("qwen3"), dtype="bfloat16", enable_prefix_caching=False) as llm:
        answers = [tokens(llm.generate(prompts, GREEDY, use_tqdm=False)) for _ in range(3)]
        monkeypatch.setattr(ChunkSteps, "takes", lambda self, batch: False)
        answers.append(tokens(llm.generate(prompts, GREEDY, use_tqdm=False)))
    assert answers[1:] == answers[:-1]


def test_enforce_eager_captures_no_graphs_and_gives_the_same_tokens(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [list(range(3, 3 + length)) for length in (1, 60, 17)]
    with engine(tiny_folder("qwen3"), enable_prefix_caching=False) as llm:
        expected = tokens(llm.generate(prompts, GREEDY, use_tqdm=False))
    monkeypatch.setattr(GraphMemory, "capture", lambda *given: pytest.fail("a graph is captured"))
    with engine(tiny_folder("qwen3"), enable_prefix_caching=False, enforce_eager=True) as llm:
        for _ in range(2):
            assert tokens(llm.generate(prompts, GREEDY, use_tqdm=False)) == expected


WIDE_HEADS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_draws_under_masks_as_graphs_follow_grammars(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    """Graphs of draws have the copies of masks and tokens in them. Rows with grammars of their own and rows without,
    which jump and end at different times, greedy and drawn, with filters; a second pass replays graphs."""
    forms = ["[ab]{30}", "[ab]name12[cd]", "[a-z]*", None, "(name[ab]|age[0-9]){1,4}", "([xyz]{3}age)*q"]
    draws_of: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_k": 5, "top_p": 0.9}]
    params = [
        SamplingParams(
            structured_outputs=None if (form := forms[i % 6]) is None else {"regex": form},
            max_tokens=14 + i % 7, seed=i, ignore_eos=form is None, **draws_of[i // 6 % 3],
        )
        for i in range(NUM_MASKED)
    ]  # fmt: skip
    prompts = [list(range(3, 4 + i % 5)) for i in range(NUM_MASKED)]
    folder = spelling_model(tiny_folder, tmp_path, num_hidden_layers=2)
    options: dict[str, Any] = {"backend": "triton", "dtype": "float32", "max_model_len": 64, "max_num_seqs": 20}
    options |= {"num_gpu_blocks_override": 200, "check_invariants": True, "enable_prefix_caching": False}
    with LLM(str(folder), enforce_eager=True, **options) as llm:
        expected = llm.generate(prompts, params, use_tqdm=False)
    with LLM(str(folder), **options) as llm:
        for _ in range(2):
            assert samples(llm.generate(prompts, params, use_tqdm=False)) == samples(expected)
    for i, output in enumerate(expected):
        answer = output.outputs[0]
        if (form := forms[i % 6]) is not None and answer.finish_reason == "stop":
            assert re.fullmatch(form, answer.text)
    assert sum(output.outputs[0].finish_reason == "stop" for output in expected) > NUM_MASKED // 3


def test_shared_blocks_are_read_once_and_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of prompts that begin alike, against plain kernels, up to the first token that differs."""
    if find_nvcc() is None:
        pytest.skip("there is no nvcc")
    (tmp_path / "config.json").write_text(json.dumps(WIDE_HEADS))
    rng = np.random.default_rng(0)
    prefixes = rng.integers(3, 512, (3, 700)).tolist()
    prompts = [{"prompt_token_ids": prefixes[i % 3] + rng.integers(3, 512, 5 + i).tolist()} for i in range(9)]
    params = SamplingParams(temperature=0, n=6, max_tokens=20, ignore_eos=True, detokenize=False, logprobs=0)
    plans: dict[int, Any] = {}
    make = SharedPlan.make

    def seen(plan: Any, **step: Any) -> None:
        plans[id(plan)] = plan
        make(plan, **step)

    monkeypatch.setattr(SharedPlan, "make", seen)
    answers = {}
    for backend in ("cuda", "triton"):
        options = {"dtype": "bfloat16", "load_format": "dummy", "max_num_seqs": 64, "max_model_len": 1024}
        with engine(tmp_path, attention_backend=backend, num_gpu_blocks_override=3000, **options) as llm:
            first = llm.generate(prompts[:3], params, use_tqdm=False)  # and they leave prefixes behind
            answers[backend] = [*first, *llm.generate(prompts, params, use_tqdm=False)]
            assert llm.stats().num_used_blocks == 0
    torch.cuda.synchronize()
    num_shared = sum(int(plan.units[: int(plan.totals[0]), 10].sum()) for plan in plans.values())
    assert num_shared >= 3, "a unit for each of the prefixes"
    check_logprobs(answers["cuda"], answers["triton"], at_least=200)


def test_short_chunks_after_a_cached_prefix_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of such chunks alone, launched, captured and replayed, are decodes in CUDA C++."""
    if find_nvcc() is None:
        pytest.skip("there is no nvcc")
    (tmp_path / "config.json").write_text(json.dumps(WIDE_HEADS | {"num_attention_heads": 8}))
    rng = np.random.default_rng(0)
    prefix = rng.integers(3, 512, 37 * BLOCK_SIZE).tolist()
    rounds = [
        [{"prompt_token_ids": prefix + rng.integers(3, 512, 3 + i).tolist()} for i in range(num)]
        for num in (9, 9, 9, 1, 13)
    ]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False, logprobs=0)
    kinds: set[tuple[str, int, bool]] = set()
    kind_of, answers = StepKind.of, {}
    for backend in ("cuda", "triton"):

        def seen(*step: Any, backend: str = backend) -> StepKind:
            kind = kind_of(*step)
            kinds.add((backend, kind.decode_threshold, kind.has_chunks))
            return kind

        monkeypatch.setattr(StepKind, "of", seen)
        options = {"dtype": "bfloat16", "load_format": "dummy", "max_num_seqs": 64, "max_model_len": 1024}
        with engine(tmp_path, attention_backend=backend, num_gpu_blocks_override=3000, **options) as llm:
            llm.generate([{"prompt_token_ids": [*prefix, 3]}], params, use_tqdm=False)  # leaves the prefix behind
            answers[backend] = [one for some in rounds for one in llm.generate(some, params, use_tqdm=False)]
            assert llm.stats().num_used_blocks == 0
    assert ("cuda", 16, False) in kinds
    assert all(threshold == 1 for name, threshold, _ in kinds if name == "triton")
    check_logprobs(answers["cuda"], answers["triton"], at_least=100)


def check_logprobs(ours: list[RequestOutput], theirs: list[RequestOutput], at_least: int) -> None:
    """Log-probabilities agree up to the first token that differs."""
    errors: list[float] = []
    for mine, yours in zip(ours, theirs, strict=True):
        for one, other in zip(mine.outputs, yours.outputs, strict=True):
            for token, expected, row, truth in zip(
                one.token_ids, other.token_ids, one.logprobs or [], other.logprobs or [], strict=True
            ):
                if token != expected:
                    break
                errors.append(row[token].logprob - truth[token].logprob)
    assert len(errors) > at_least
    assert np.sqrt(np.mean(np.square(errors))) < TOLERANCE["bfloat16"]
