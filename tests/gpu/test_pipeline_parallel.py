"""Stages with GPU kernels give one rank's tokens: on GPUs of their own, on one together, and without any.

Hidden states pass by NCCL, or through the host where stages share a GPU; each stage's kernels are CUDA graphs in both
cases. Under Triton's interpreter each stage's GPU is the CPU, and one thread runs the stages one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from octavo.config import EngineConfig
from octavo.engine import assemble
from octavo.executor.executor import executor_here
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import Preempted, Sampled
from octavo.worker.task import WorkerTask
from tests.conftest import TinyFolder
from tests.distributed.threaded_ranks import ThreadedRanks
from tests.gpu.device import ON_GPU
from tests.gpu.interpreted_rank import pretend
from tests.lora.written_adapters import LINEARS, write_adapter
from tests.structured.spelling_model import spelling_model
from tests.tiny_models import make_tiny_model

PROMPTS = [list(range(3, 3 + length)) for length in (1, 37, 9, 20)]
INTERPRETED = [[3], [5, 6, 7], list(range(3, 23)), [8, 9]]
FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # for the interpreter
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
BEAMS = SamplingParams(use_beam_search=True, n=2, max_tokens=8, detokenize=False)
PENALISED = GREEDY.replace(presence_penalty=0.7, logprobs=1, prompt_logprobs=1)
PARAMS = [GREEDY, GREEDY.replace(temperature=0.9, top_k=5, seed=3, n=2), PENALISED, BEAMS]
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
FOUR_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four GPUs")


def engine(folder: object, **options: Any) -> LLM:
    sizes = {"max_model_len": 96, "max_num_seqs": 8, "max_num_batched_tokens": 24, "num_gpu_blocks_override": 64}
    given: dict[str, Any] = {**sizes, "backend": "triton", "dtype": "float32", "check_invariants": True}
    return LLM(str(folder), **(given | {"skip_tokenizer_init": True} | options))


def answers(
    llm: LLM, params: list[SamplingParams] = PARAMS, prompts: list[list[int]] = PROMPTS
) -> list[list[list[int]]]:
    outputs = llm.generate(prompts[: len(params)], params, use_tqdm=False)
    return [[one.token_ids for one in output.outputs] for output in outputs]


def check(folder: object, *, stages: int = 2, **options: Any) -> str:
    """Twice, so that captured steps run, too. Returns the card's line about ranks."""
    with engine(folder) as one:
        expected = answers(one)
    with engine(folder, pipeline_parallel_size=stages, **options) as several:
        assert answers(several) == expected
        assert answers(several) == expected
        assert several.stats().num_used_blocks == 0
        return dict(several.card)["ranks"]


@TWO_GPUS
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_two_gpus_give_ones_tokens(name: str, eager: bool, tiny_folder: TinyFolder) -> None:
    card = check(tiny_folder(name), enforce_eager=eager)
    assert card.endswith("exchanging by NCCL: cuda:0, cuda:1")


@TWO_GPUS
def test_stages_of_two_gpus_are_preempted_and_go_on(tiny_folder: TinyFolder) -> None:
    tight = {"num_gpu_blocks_override": 8, "schedule_conservativeness": 0}
    with engine(tiny_folder("qwen3")) as one:
        expected = answers(one, [GREEDY] * 4)
    with engine(tiny_folder("qwen3"), pipeline_parallel_size=2, **tight) as two:
        assert answers(two, [GREEDY] * 4) == expected
        assert any(isinstance(event, Preempted) for event in two.events)


@TWO_GPUS
def test_long_chunks_reach_the_next_stage_whole(tmp_path: Path) -> None:
    """Steps that are not captured, and so many in a row that one's hidden states wait for the next stage."""
    sizes: dict[str, Any] = {"max_model_len": 2048, "max_num_batched_tokens": 4096, "num_gpu_blocks_override": 1200}
    prompts = [[3 + (start + index) % 40 for index in range(1500)] for start in range(8)]
    folder = make_tiny_model("qwen3", tmp_path / "long", max_position_embeddings=2048)
    found = []
    for stages in (1, 2):
        with engine(folder, pipeline_parallel_size=stages, **sizes) as llm:
            outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


@TWO_GPUS
def test_a_server_of_two_stages_warms_up(tiny_folder: TinyFolder) -> None:
    """As `octavo serve` does, with the rehearsal that compiles kernels; then it answers as one rank does."""
    from octavo.engine.assemble import build_engine
    from octavo.engine.options import engine_config

    options = {"model": str(tiny_folder("qwen3")), "backend": "triton", "skip_tokenizer_init": True}
    config = engine_config(**options, pipeline_parallel_size=2, max_model_len=96, num_gpu_blocks_override=64)
    built = build_engine(config, serves=True)
    try:
        assert dict(built.card)["ranks"].endswith("exchanging by NCCL: cuda:0, cuda:1")
    finally:
        built.close()


@FOUR_GPUS
def test_stages_of_several_ranks_give_ones_tokens(tiny_folder: TinyFolder) -> None:
    card = check(tiny_folder("qwen3"), tensor_parallel_size=2)
    assert card.endswith("exchanging by NCCL: cuda:0, cuda:1, cuda:2, cuda:3")


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_stages_may_share_a_gpu(name: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_RANKS_PER_GPU", "2")
    card = check(tiny_folder(name))
    assert card.endswith("exchanging by gloo: cuda:0, cuda:0")


@dataclass(frozen=True, slots=True)
class _Computed:
    """A PendingStep. drawn: what other stages have not learned yet."""

    done: StepResult
    drawn: list[StepResult]

    def result(self) -> StepResult:
        self.drawn.append(self.done)
        return self.done


class StagesInTurn(ThreadedRanks):
    """One thread computes all of a step, stage by stage: the interpreter knows no other."""

    def submit(self, plan: StepPlan) -> Any:
        plan = self._told(plan)
        *_, result = [worker.submit(plan).result() for worker in self._workers]
        return _Computed(result, self._drawn)


@pytest.fixture
def _interpreted(inline_executor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if ON_GPU:
        pytest.skip("the tests above ask the same of GPUs")
    pretend(monkeypatch)

    def start(config: EngineConfig, **how: bool) -> Any:
        task = WorkerTask.of(config, **how)
        return StagesInTurn(task) if task.world.size > 1 else executor_here(task)

    monkeypatch.setattr(assemble, "build_executor", start)


@pytest.mark.usefixtures("_interpreted")
def test_interpreted_stages_give_the_hosts_tokens(tmp_path: Path) -> None:
    """With forks, beams, penalties, log-probabilities, and chunks of prompts beside decodes."""
    folder = make_tiny_model("qwen3", tmp_path / "model", num_hidden_layers=3, **FEW_HEADS)
    params = [each.replace(max_tokens=2) for each in PARAMS]
    with engine(folder, backend="reference") as one:
        expected = answers(one, params, INTERPRETED)
    with engine(folder, pipeline_parallel_size=3, max_num_batched_tokens=16) as several:
        assert answers(several, params, INTERPRETED) == expected
        assert several.stats().num_used_blocks == 0


@pytest.mark.usefixtures("_interpreted")
def test_interpreted_stages_preempt(tiny_folder: TinyFolder) -> None:
    prompts = [[first] * 15 for first in (3, 4, 5)]
    tight = {"num_gpu_blocks_override": 5, "schedule_conservativeness": 0, "max_model_len": 64}
    found = []
    for options in ({"backend": "reference"}, {"pipeline_parallel_size": 2} | tight):
        with engine(tiny_folder("qwen3", num_hidden_layers=2, **FEW_HEADS), **options) as llm:
            outputs = llm.generate(prompts, GREEDY.replace(max_tokens=4), use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
            preempts = any(isinstance(event, Preempted) for event in llm.events)
    assert found[0] == found[1]
    assert preempts


def test_grammars_are_followed_in_the_last_stage(
    tiny_folder: TinyFolder, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late draw waits for its mask while another step is launched; what is forced reaches the other stage's rows."""
    if ON_GPU:
        monkeypatch.setenv("OCTAVO_RANKS_PER_GPU", "2")
    else:
        request.getfixturevalue("_interpreted")
    folder, form = (
        spelling_model(tiny_folder, tmp_path, num_hidden_layers=2, **FEW_HEADS),
        {"regex": r"name(a|b)(name|age)[a-c]12"},
    )
    params = [SamplingParams(structured_outputs=form, seed=1, max_tokens=9), GREEDY.replace(max_tokens=3, logprobs=1)]
    found = []
    for options in ({"backend": "reference"}, {"pipeline_parallel_size": 2}):
        with engine(folder, skip_tokenizer_init=False, **options) as llm:
            found.append(answers(llm, params, INTERPRETED[1:]))
            assert any(isinstance(event, Sampled) and event.num_forced for event in llm.events)
    assert found[0] == found[1]


def test_stages_share_an_adapter(
    tiny_folder: TinyFolder, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside requests without one, in prompts and decodes; then alone."""
    if ON_GPU:
        monkeypatch.setenv("OCTAVO_RANKS_PER_GPU", "2")
    else:
        request.getfixturevalue("_interpreted")
    folder, found = tiny_folder("llama", num_hidden_layers=2, **FEW_HEADS), []
    adapter = LoRARequest("a", 1, str(write_adapter(tmp_path / "a", folder, (*LINEARS, "embed_tokens", "lm_head"))))
    for options in ({"backend": "reference"}, {"pipeline_parallel_size": 2}):
        with engine(folder, enable_lora=True, **options) as llm:
            for asked in ([adapter, None, adapter, None], adapter):
                outputs = llm.generate(INTERPRETED, GREEDY.replace(max_tokens=3), False, lora_request=asked)
                found.append([output.outputs[0].token_ids for output in outputs])
    assert found[:2] == found[2:]
