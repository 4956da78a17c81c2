"""Adapters in a whole engine: each gives what the model would with its matrices merged, whoever is beside it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from octavo import LLM, InvalidRequestError, LoRARequest, SamplingParams
from octavo.lora.folder import Adapter
from octavo.observe.events import AdapterAsked, AdapterCame, Event, Preempted, PrefixHit, StepDone, Waits
from octavo.observe.flight_log import read_log
from octavo.simulator.replay import replay
from tests.conftest import TinyFolder
from tests.lora.written_adapters import ATTENTION, LINEARS, merge, write_adapter

PROMPTS = [[5, 9, 2, 44, 7], [3, 3, 17, 21, 60, 11, 90, 45, 8, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [101, 4]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 8,
    "num_gpu_blocks_override": 60, "check_invariants": True,
}  # fmt: skip
#: name -> what `write_adapter` is told
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"targets": LINEARS, "rank": 4, "seed": 1},
    "rows": {"targets": ("q_proj", "down_proj"), "rank": 8, "seed": 2, "use_rslora": True, "lora_alpha": 4},
    "ends": {"targets": ("embed_tokens", "lm_head", "v_proj"), "rank": 3, "seed": 3},
    "ranks": {
        "targets": ATTENTION, "rank": 2, "seed": 4,
        "rank_pattern": {"k_proj": 5}, "alpha_pattern": {"v_proj": 32, "^k_proj$": 8},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_folder: TinyFolder) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoRARequest]:
    root = tmp_path_factory.mktemp("adapters")
    folders = {name: write_adapter(root / name, model, **told) for name, told in ADAPTERS.items()}
    return {name: LoRARequest(name, number, str(folder)) for number, (name, folder) in enumerate(folders.items(), 1)}


@pytest.fixture(scope="module")
def merged(
    model: Path, adapters: dict[str, LoRARequest], tmp_path_factory: pytest.TempPathFactory
) -> dict[str | None, list[list[int]]]:
    """The answers of each merged model, and under None of the model itself."""
    root, found = tmp_path_factory.mktemp("merged"), dict[str | None, list[list[int]]]()
    for name in (None, *adapters):
        folder = model if name is None else merge(root / name, model, Path(adapters[name].lora_path))
        with LLM(str(folder), backend="reference", **OPTIONS) as llm:
            found[name] = answers(llm)
    assert len({str(one) for one in found.values()}) == len(found), "each adapter changes the answers"
    return found


@pytest.fixture(scope="module", params=["reference", "cpu"])
def llm(request: pytest.FixtureRequest, model: Path) -> Iterator[LLM]:
    options = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_num_batched_tokens": 16}
    with LLM(str(model), backend=request.param, **OPTIONS, **options) as engine:
        yield engine


def answers(llm: LLM, lora_request: Any = None, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [one.outputs[0].token_ids for one in llm.generate(PROMPTS, params, False, lora_request=lora_request)]


def test_each_adapter_answers_as_its_merged_model(
    llm: LLM, adapters: dict[str, LoRARequest], merged: dict[str | None, list[list[int]]]
) -> None:
    for name, adapter in adapters.items():
        assert answers(llm, adapter) == merged[name], name
    assert answers(llm) == merged[None]


def test_adapters_and_none_run_in_one_batch(
    llm: LLM, adapters: dict[str, LoRARequest], merged: dict[str | None, list[list[int]]]
) -> None:
    """Five kinds of requests and two slots: the rest waits for one, and says so."""
    names = [name for name in (*adapters, None) for _ in PROMPTS]
    before = len(llm.events.newer)
    outputs = llm.generate(
        PROMPTS * len(merged), GREEDY, False, lora_request=[None if name is None else adapters[name] for name in names]
    )
    wanted = [tokens for name in dict.fromkeys(names) for tokens in merged[name]]
    assert [one.outputs[0].token_ids for one in outputs] == wanted
    assert [one.lora_request and one.lora_request.lora_name for one in outputs] == names
    assert outputs[0].outputs[0].lora_request == adapters["all"]
    whys = [event.why for event in list(llm.events.newer)[before:] if isinstance(event, Waits)]
    assert any(why.startswith("adapters: ") for why in whys)


def test_a_recorded_run_is_decided_again_as_it_was(
    model: Path, adapters: dict[str, LoRARequest], tmp_path: Path
) -> None:
    """Who waited for a slot, and which prefixes were found."""
    log = tmp_path / "run.olog"
    given = [*adapters.values()] * 2
    with LLM(str(model), backend="cpu", enable_lora=True, max_loras=2, record=str(log), **OPTIONS) as llm:
        llm.generate([PROMPTS[1]] * len(given), GREEDY, False, lora_request=given)
    replayed = replay(lambda: read_log(log))
    assert replayed.difference is None
    assert replayed.num_steps > 20


def test_adapters_share_no_blocks_and_samples_share_theirs(llm: LLM, adapters: dict[str, LoRARequest]) -> None:
    llm.reset_prefix_cache()
    prompt = [*range(20, 60)]
    assert [one.num_cached_tokens for one in ask(llm, prompt, adapters["all"])] == [0]
    assert [one.num_cached_tokens for one in ask(llm, prompt, None)] == [0]
    assert [one.num_cached_tokens for one in ask(llm, prompt, adapters["rows"])] == [0]
    (again,) = ask(llm, prompt, adapters["all"])
    assert again.num_cached_tokens == 32
    several = GREEDY.replace(n=3)
    (output,) = llm.generate([prompt], several, False, lora_request=adapters["all"])
    assert [one.token_ids for one in output.outputs] == [again.outputs[0].token_ids] * 3
    assert any(isinstance(event, PrefixHit) for event in llm.events.newer)


def ask(llm: LLM, prompt: list[int], adapter: LoRARequest | None) -> list[Any]:
    return llm.generate([prompt], GREEDY, False, lora_request=adapter)


def test_a_preempted_sequence_comes_back_with_its_adapter(
    model: Path, adapters: dict[str, LoRARequest], merged: dict[str | None, list[list[int]]]
) -> None:
    """One slot, few blocks: each takes the other's place again and again, and beams end as they did."""
    small = OPTIONS | {"num_gpu_blocks_override": 8, "block_size": 8, "max_model_len": 40}
    small["schedule_conservativeness"] = 0.0
    names = ["all", None, "rows"]
    with LLM(str(model), backend="cpu", enable_lora=True, max_loras=2, **small) as llm:
        given = [None if name is None else adapters[name] for name in names]
        outputs = llm.generate([PROMPTS[0]] * 3, GREEDY.replace(max_tokens=24), False, lora_request=given)
        assert any(isinstance(event, Preempted) for event in llm.events.newer)
    found = [one.outputs[0].token_ids[:12] for one in outputs]
    assert found == [merged[name][0] for name in names]


def test_what_cannot_be_asked(llm: LLM, adapters: dict[str, LoRARequest], model: Path, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", model, rank=9)
    answers(llm, adapters["all"])  # its number and its name are taken
    wrong: list[tuple[Any, str]] = [
        (7, "lora_request is 7, allowed are a LoRARequest"),
        ([adapters["all"]], "1 values for 3 prompts"),
        (LoRARequest("new", 9), "there is no adapter 'new'"),
        (LoRARequest("new", 9, str(tmp_path / "none")), "cannot be loaded: .*none is no folder; allowed is an adapter"),
        (LoRARequest("new", adapters["all"].lora_int_id, "x"), "give each adapter a number of its own"),
        (LoRARequest("all", 77, "elsewhere"), "take another name, or set load_inplace"),
        (LoRARequest("wide", 9, str(wide)), "has rank 9, allowed is max_lora_rank = 8"),
    ]
    for lora_request, message in wrong:
        with pytest.raises(InvalidRequestError, match=message):
            answers(llm, lora_request)
    with LLM(str(model), backend="cpu", **OPTIONS) as plain, pytest.raises(InvalidRequestError, match="enable_lora"):
        answers(plain, adapters["all"])


def test_a_folder_that_changes_fails_its_requests_alone(llm: LLM, model: Path, tmp_path: Path) -> None:
    """It is loaded, pushed out of its slot, and gone when it is needed again; then loaded in place."""
    folder = write_adapter(tmp_path / "gone", model, seed=9)
    adapter = LoRARequest("gone", 20, str(folder))
    before = answers(llm, adapter)
    folders = [write_adapter(tmp_path / f"x{seed}", model, seed=seed) for seed in range(3)]
    others = [LoRARequest(f"x{seed}", 30 + seed, str(folder)) for seed, folder in enumerate(folders)]
    llm.generate(PROMPTS, GREEDY, False, lora_request=others)
    write_adapter(folder, model, seed=10)
    outputs = llm.generate([*PROMPTS, PROMPTS[0]], GREEDY, False, lora_request=[adapter] * 3 + [others[0]])
    assert [one.outputs[0].finish_reason for one in outputs] == ["error", "error", "error", "length"]
    assert "has changed since the adapter was loaded" in str(outputs[0].outputs[0].stop_reason)
    again = answers(llm, LoRARequest("gone", 20, str(folder), load_inplace=True))
    assert again != before
    shutil.rmtree(folder)
    assert answers(llm, adapter) == again  # it is still in its slot
    llm.generate(PROMPTS, GREEDY, False, lora_request=others)
    outputs = llm.generate(PROMPTS[:2], GREEDY, False, lora_request=[adapter, others[0]])
    assert [one.outputs[0].finish_reason for one in outputs] == ["error", "length"]
    assert "adapter_model.safetensors" in str(outputs[0].outputs[0].stop_reason)


@pytest.mark.usefixtures("inline_executor")
def test_steps_go_on_while_an_adapter_is_read(
    llm: LLM, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once another request has gone three steps, and its own waits apart."""
    folder, read = write_adapter(tmp_path / "late", model, seed=11), Adapter.read
    have_gone, steps = threading.Event(), list[StepDone]()

    def count(event: Event) -> None:
        if isinstance(event, StepDone) and event.num_tokens:
            steps.append(event)
            if len(steps) == 3:
                have_gone.set()

    def slowly(*given: Any, **how: Any) -> Adapter:
        assert have_gone.wait(20), "steps wait for the adapter"
        return read(*given, **how)

    monkeypatch.setattr(Adapter, "read", slowly)
    llm.events.listen(count)
    outputs = llm.generate(PROMPTS[:2], GREEDY, False, lora_request=[None, LoRARequest("late", 40, str(folder))])
    assert [len(one.outputs[0].token_ids) for one in outputs] == [12, 12]
    told = [event for event in llm.events.newer if isinstance(event, AdapterAsked | AdapterCame | Waits)][-3:]
    assert [type(event) for event in told] == [Waits, AdapterAsked, AdapterCame]
    assert "is being read" in told[0].why
