"""A model in stages gives one rank's tokens: every family, on the host's backends, for every kind of request."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LoRARequest
from octavo.config import BackendConfig, ModelConfig
from octavo.distributed.world import World, check_alike
from octavo.engine.options import engine_config
from octavo.errors import ConfigError
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.program.recorder import record_model
from octavo.kernels.registry import select
from octavo.messages import END_OF_GRAMMAR, NewRow, StepPlan, StepResult
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model, required_tensors
from octavo.models.splits import layers_of
from octavo.observe.events import EngineStarted, Preempted, Sampled, Scheduled
from octavo.worker.plan import Planner
from octavo.worker.rows import RequestStates
from octavo.worker.runner import Draws
from octavo.worker.task import WorkerTask
from octavo.worker.undrawn import UndrawnSteps
from tests.conftest import TinyFolder
from tests.distributed.conftest import engine
from tests.distributed.test_tensor_parallel import FAMILIES, GREEDY, answers, check, tokens
from tests.distributed.threaded_ranks import ThreadedRanks, on_all_ranks
from tests.engine.test_overlap import PROMPTS
from tests.lora.written_adapters import LINEARS, write_adapter
from tests.structured.spelling_model import spelling_model
from tests.structured.test_engine import MANY, all_params
from tests.structured.test_engine import tokens as texts


@pytest.fixture(scope="session")
def of_four_layers(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Callable[[str], Path]:
    """name of TINY -> folder."""
    from tests.tiny_models import TINY, make_tiny_model

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            layers = {"n_layer" if TINY[name][0] == "GPT2Config" else "num_hidden_layers": 4}
            made[name] = make_tiny_model(name, tmp_path_factory.mktemp("stages") / name, **layers)
        return made[name]

    return get


#: (ranks of a stage, stages): for each family, and for those whose layers or ends differ most
LAYOUTS = dict.fromkeys(FAMILIES, ((1, 4),))
LAYOUTS |= dict.fromkeys(("llama-tied-bias", "gpt2", "opt-normed-after"), ((1, 4), (2, 2)))
LAYOUTS |= dict.fromkeys(("llama", "gemma3"), ((1, 2), (1, 3), (1, 4), (2, 2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_one_ranks_tokens(name: str, of_four_layers: Callable[[str], Path]) -> None:
    folder = of_four_layers(name)
    with engine(folder, 1) as one:
        expected = tokens(one)
    for num_ranks, num_stages in LAYOUTS[name]:
        with engine(folder, num_ranks, num_stages, max_num_batched_tokens=40) as several:
            assert tokens(several) == expected
            assert several.stats().num_used_blocks == 0


@pytest.mark.parametrize("name", ["llama", "llama-tied-bias"])
def test_stages_share_an_adapter(name: str, of_four_layers: Callable[[str], Path], tmp_path: Path) -> None:
    """Of the first two layers alone, and of all, the embedding and the head, beside requests without one."""
    folder = of_four_layers(name)

    def add_head(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Also where it shares the embedding's numbers, and the file has none of its own."""
        config["target_modules"].append("lm_head")
        embedding = "base_model.model.model.embed_tokens.lora_embedding"
        for which, other in ("A", "B"), ("B", "A"):
            numbers = np.ascontiguousarray(tensors[f"{embedding}_{other}"].T[:, ::-1])
            tensors[f"base_model.model.lm_head.lora_{which}.weight"] = numbers

    def cut(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.2." in name or ".layers.3." in name]:
            del tensors[name]

    wide = write_adapter(tmp_path / "wide", folder, (*LINEARS, "embed_tokens"), rank=3, change=add_head)
    first = {"layers_to_transform": [0, 1], "change": cut}
    few = write_adapter(tmp_path / "few", folder, ("q_proj", "down_proj"), seed=5, **first)  # type: ignore[arg-type]
    kinds = [LoRARequest("wide", 1, str(wide)), LoRARequest("few", 2, str(few)), None]
    asked = [kinds[place % 3] for place in range(len(PROMPTS))]
    found = []
    for num_ranks, num_stages in ((1, 1), (1, 4), (2, 2)):
        with engine(folder, num_ranks, num_stages, enable_lora=True, max_num_batched_tokens=40) as llm:
            outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=asked)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1] == found[2]
    assert len({tuple(tokens) for tokens in found[0]}) > 1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_any_request_gets_one_ranks_answer(name: str, of_four_layers: Callable[[str], Path]) -> None:
    """Also from the prefix tree, and where blocks are so few that requests are preempted."""
    folder = of_four_layers(name)
    with engine(folder, 1) as one:
        expected = answers(one)
        start = next(event for event in one.events if isinstance(event, EngineStarted))
    tight = -(-96 // start.block_size) * start.num_groups + 1
    eager = {"num_gpu_blocks_override": tight, "schedule_conservativeness": 0}
    layouts: list[tuple[int, int, dict[str, float]]] = [(1, 4, eager), (1, 3, {"max_num_batched_tokens": 20})]
    for num_ranks, num_stages, options in layouts if name == "llama" else [(2, 2, eager)]:
        with engine(folder, num_ranks, num_stages, **options) as several:
            check(answers(several), expected)
            for _ in several.stream(PROMPTS, GREEDY):  # left early: aborted
                break
            check(answers(several), expected)
            assert several.stats().num_used_blocks == 0
            assert any(isinstance(event, Preempted) for event in several.events) == (options is eager)


def test_the_reference_backend_has_stages_too(of_four_layers: Callable[[str], Path]) -> None:
    folder = of_four_layers("qwen3")
    with engine(folder, 1) as one:
        expected = tokens(one)
    with engine(folder, 1, 2, backend="reference") as two:
        assert tokens(two) == expected


def test_answers_follow_grammars_in_stages(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    """Masks are applied and tokens forced where they are drawn; the other stages learn both. Also with preemption."""
    folder, given = spelling_model(tiny_folder, tmp_path), {"skip_tokenizer_init": False, "max_model_len": 128}
    with engine(folder, 1, **given) as one:
        expected = texts(one.generate(MANY, all_params(), use_tqdm=False))
        assert any(isinstance(event, Sampled) and event.num_forced for event in one.events)
    for num_ranks, options in ((1, {}), (2, {"num_gpu_blocks_override": 9, "schedule_conservativeness": 0})):
        with engine(folder, num_ranks, 2, **given, **options) as several:
            assert texts(several.generate(MANY, all_params(), use_tqdm=False)) == expected
            assert several.stats().num_used_blocks == 0
            assert any(isinstance(event, Preempted) for event in several.events) == bool(options)


def test_each_step_has_its_part_of_the_sequences(of_four_layers: Callable[[str], Path]) -> None:
    """So that every stage has a step. Without async_scheduling one step at a time has them all."""
    params, prompts = GREEDY.replace(max_tokens=9), [[3, 4, 5 + index] for index in range(8)]
    found = []
    for options in ({}, {"async_scheduling": False}):
        with engine(of_four_layers("llama"), 1, 2, **options) as llm:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
            steps = [event for event in llm.events if isinstance(event, Scheduled)]
            decodes = [step.sequence_ids for step in steps[1:]]
            assert {len(ids) for ids in decodes} == ({8} if options else {4})
            assert all(not {*ids} & {*others} for ids, others in pairwise(decodes)) != bool(options)
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "num_stages"), [("llama", 3), ("gemma3", 2), ("llama-tied-bias", 4)])
def test_a_stage_reads_its_layers_alone(name: str, num_stages: int, of_four_layers: Callable[[str], Path]) -> None:
    """But for a tied embedding, which the first and the last stage read."""
    checkpoint = open_checkpoint(ModelConfig(model=str(of_four_layers(name))))
    a = checkpoint.architecture
    read: list[set[str]] = []
    for stage in range(num_stages):
        layers = layers_of(a.num_layers, stage, num_stages)
        model = build_model(a, checkpoint, [(0, layer) for layer in range(a.num_layers)], 64, layers=layers)
        body, heads = record_model(model)
        read.append({each.name for part in (body, *heads.values()) for each in part.parameters()})
    ends = {id(read[0]), id(read[-1])}
    both = {"model.embed_tokens.weight"} if a.tie_word_embeddings else set()
    assert read[0] & read[-1] == both
    assert all(not one & other for one, other in combinations(read, 2) if {*map(id, (one, other))} != ends)
    assert set().union(*read) == set(required_tensors(a))


def test_layers_are_shared_evenly_and_the_last_stage_has_no_more_than_others() -> None:
    for num_layers, num_stages in product(range(1, 40), range(1, 9)):
        if num_stages > num_layers:
            continue
        parts = [layers_of(num_layers, stage, num_stages) for stage in range(num_stages)]
        assert [layer for part in parts for layer in part] == list(range(num_layers))
        lens = [len(part) for part in parts]
        assert max(lens) - min(lens) <= 1
        assert lens[-1] == min(lens)


def test_what_the_last_stage_draws_reaches_only_the_rows_that_it_was_drawn_for() -> None:
    """Guesses that were wrong, forced tokens and failed draws are kept as the last stage keeps them."""
    draws = Draws(
        rows=np.array([4, 4, 4, 1, 2], np.int32), positions=np.array([5, 6, 7, 3, 8], np.int32),
        logits_rows=np.arange(5, dtype=np.int32), wanted=np.arange(5, dtype=np.int32),
        counts=np.array([3, 0, 1, 1], np.int32),
    )  # fmt: skip
    states = RequestStates(max_num_seqs=5, max_model_len=12, block_size=4, num_groups=1)
    steps = UndrawnSteps(states, 5)

    def told(result: StepResult, *entered: int) -> dict[int, list[int]]:
        states.token_ids[:], states.num_tokens[:] = 0, 0
        new = [NewRow(row, [1], 1, GREEDY, 0, 0) for row in entered]
        steps.add(result.step_id, draws)
        steps.learn(StepPlan(result.step_id + 1, new_rows=new, drawn=(result,)))
        return {row: states.token_ids[row, 3 : states.num_tokens[row]].tolist() for row in range(5)}

    none: list[int] = []
    assert told(StepResult(1, [7, 8, 9], [0, 2, 2, 2, 3])) == {
        0: none,
        1: none,
        2: [0] * 5 + [9],
        3: none,
        4: [0, 0, 7, 8],
    }
    forced = StepResult(2, [7, 8, 9, 6, 5, 4, END_OF_GRAMMAR, -1], [0, 3, 3, 7, 8])
    assert told(forced) == {0: none, 1: [6, 5, 4], 2: none, 3: none, 4: [0, 0, 7, 8, 9]}
    told(StepResult(3, [7, 8, 9], [0, 2, 2, 2, 3]), 4)
    assert told(StepResult(3, [7, 8, 9], [0, 2, 2, 2, 3]))[4] == none, "another sequence has entered the row"


def test_a_stage_has_the_memory_that_was_planned(of_four_layers: Callable[[str], Path]) -> None:
    sizes = {"max_model_len": 96, "max_num_seqs": 4, "num_threads": 1, "kv_cache_memory_bytes": 1 << 20}
    config = engine_config(model=str(of_four_layers("gemma3")), backend="cpu", pipeline_parallel_size=3, **sizes)
    task = WorkerTask.of(config)
    plans = Planner.of(task, select(task.backend).device).stages(task, 1, 3)
    ranks = ThreadedRanks(task)
    for worker, plan in zip(ranks._workers, plans, strict=True):
        measured, shape = worker.measured(), worker.shape
        assert (shape.layout, shape.limits) == (plan.sizes.layout, plan.sizes.limits)
        assert shape.planned == {component: plan.ledger.of(component) for component in shape.planned}
        for component in ("weights", "rows"):
            assert measured[component] == pytest.approx(plan.ledger.of(component), abs=256), component
    ranks.close()


def test_layouts_that_do_not_work_name_those_that_do(
    of_four_layers: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_four_layers("llama")
    with pytest.raises(
        ConfigError, match=r"pipeline_parallel_size is 5, but the model has 4 layers.*: allowed are 1 to 4$"
    ):
        engine(folder, 1, 5)
    monkeypatch.setattr(CudaDevice, "why_not", lambda device: None if device.index < 3 else "there are 3 GPUs")
    world = World(tensor_parallel_size=2, pipeline_parallel_size=2)
    with pytest.raises(
        ConfigError,
        match=r"tensor_parallel_size 2 times pipeline_parallel_size 2 is 4, but .* rank 3: there are 3 GPUs; allowed "
        r"here are up to 3 ranks",
    ):
        select(BackendConfig(backend="triton", tensor_parallel_size=2, pipeline_parallel_size=2), world)
    kinds = on_all_ranks(3, lambda ranks: ranks.words(f"GPU {min(ranks.rank, 1)}, {'ü' * 60}"))
    assert kinds[0] == kinds[1] == kinds[2]
    with pytest.raises(ConfigError, match=r"GPU 0, ü+.?: rank 0; GPU 1, ü+.?: ranks 1, 2\).* are up to 2 ranks"):
        check_alike(kinds[0], World(pipeline_parallel_size=3))
    check_alike(["A", "A"], World(tensor_parallel_size=2))
