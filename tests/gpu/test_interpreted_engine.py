"""The whole engine with a GPU's runner and kernels but no GPU: under Triton's interpreter.

There are no graphs and no overlap in time. But rows, padding, launched steps and tokens that the host does not know yet
work as on a GPU, and the tokens must equal those of the engine on the CPU.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu.device import ON_GPU

if ON_GPU:
    pytest.skip("test_engine.py asks the same of the GPU", allow_module_level=True)

from octavo import LLM, SamplingParams
from octavo.engine.options import engine_config
from octavo.executor.executor import executor_here
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.device import DTypes
from octavo.kernels.triton.attention.triton_attention import TritonAttention
from octavo.observe.events import Sampled
from octavo.simulator.step_timer import Patience, StepTimer
from octavo.worker.rows import RequestStates
from octavo.worker.task import WorkerTask
from tests.conftest import TinyFolder
from tests.structured.spelling_model import spelling_model
from tests.test_logits_processors import follow_functions
from tests.tiny_models import make_tiny_model
from tests.worker.guessing import guess_next_tokens

PROMPTS = [list(range(3, 3 + length)) for length in (1, 37, 9)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, detokenize=False)
#: where it does not matter how layers and heads differ; a program costs milliseconds
FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
ONE_LAYER = {"num_hidden_layers": 1, **FEW_HEADS}


def engine(folder: object, backend: str, **options: object) -> LLM:
    return LLM(
        str(folder), backend=backend, max_model_len=64, max_num_seqs=8, num_gpu_blocks_override=40,
        check_invariants=True, **{"dtype": "float32", "skip_tokenizer_init": True, **options},
    )  # fmt: skip


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("name", "num_layers", "decode_threshold", "short_chunk"),
    [("qwen3", 2, 1, 1), ("qwen3", 1, 16, 1), ("qwen2-moe", 2, 1, 16), ("gpt-oss", 2, 1, 1)],
)
def test_it_gives_the_hosts_tokens(
    name: str,
    num_layers: int,
    decode_threshold: int,
    short_chunk: int,
    tiny_folder: TinyFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TritonAttention, "short_chunk", short_chunk)
    gather = RequestStates.gather
    monkeypatch.setattr(
        RequestStates, "gather", lambda *given: replace(gather(*given), decode_threshold=decode_threshold)
    )
    gives_the_hosts_tokens(tiny_folder(name, num_hidden_layers=num_layers, **({} if name == "qwen3" else FEW_HEADS)))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "fp8", "calculate_kv_scales": True}])
def test_over_latents_it_gives_the_hosts_tokens(
    options: dict[str, object], tmp_path: Path, one_torch_thread: None
) -> None:
    sizes = {"first_k_dense_replace": 1, "num_hidden_layers": 1}
    gives_the_hosts_tokens(make_tiny_model("deepseek-v3", tmp_path, **sizes), **options)


def gives_the_hosts_tokens(folder: Path, **options: object) -> None:
    """With copies of blocks, and from the prefix tree."""
    params, options = [GREEDY, GREEDY.replace(n=2), GREEDY], {"max_num_batched_tokens": 24, **options}
    with engine(folder, "reference", **options) as host:
        expected = [[one.token_ids for one in output.outputs] for output in host.generate(PROMPTS, params)]
    with engine(folder, "triton", **options) as device:
        for _ in range(2):  # the second time from the prefix tree
            got = [[one.token_ids for one in output.outputs] for output in device.generate(PROMPTS, params)]
            assert got == expected
        assert device.stats().num_used_blocks == 0


@pytest.mark.usefixtures("interpreter")
def test_matrices_that_stay_quantised_give_the_hosts_tokens(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 1, "num_experts": 4}
    folder, answers = make_tiny_model("qwen3-moe", tmp_path, **sizes), []
    for backend in ("reference", "triton"):
        with engine(folder, backend, quantization="int4", max_num_batched_tokens=48) as llm:
            if backend == "triton":
                card = dict(llm.card)["quantised"]
                assert "made" not in card
                assert card.endswith("multiplied as they are")
            answers.append([output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)])
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("interpreter")
def test_ggufs_blocks_that_stay_quantised_give_the_hosts_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model computes in float32, so that the tokens are the same; a dtype that is asked for makes GGUF dense."""
    pytest.importorskip("gguf")
    monkeypatch.setattr(CudaDevice, "dtypes", lambda *given: DTypes("float32", "float32"))
    from tests.models.gguf_files import mixed_llama

    file, answers = mixed_llama(tmp_path / "mixed.gguf"), []
    for backend in ("reference", "triton"):
        with engine(file, backend, max_num_batched_tokens=8, dtype="auto") as llm:
            if backend == "triton":
                card = dict(llm.card)["quantised"]
                assert "Q4_0 in q_proj, k_proj: multiplied as they are; Q8_0 in v_proj: multiplied as they are" in card
                assert "made" not in card
            outputs = llm.generate([[1, 2, 3], [5, 1]], GREEDY)
            answers.append([output.outputs[0].token_ids for output in outputs])
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("interpreter")
def test_with_calibrated_codes_it_gives_the_hosts_tokens(tiny_folder: TinyFolder) -> None:
    answers, options = [], {"kv_cache_dtype": "int8", "calculate_kv_scales": True, "max_num_batched_tokens": 16}
    for backend in ("reference", "triton"):
        with engine(tiny_folder("qwen3", num_hidden_layers=2), backend, **options) as llm:
            assert dict(llm.card)["KV cache"].endswith("as int8 with scales calibrated on 16 tokens")
            for _ in range(2):  # the second time from the prefix tree
                outputs = llm.generate([list(range(3, 20))], GREEDY.replace(n=2, max_tokens=2))
                answers.append([[one.token_ids for one in output.outputs] for output in outputs])
    assert answers[0] == answers[1] == answers[2] == answers[3]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("nvcc", [None, Path("/bin/nvcc")])
def test_the_start_up_card_names_the_attention_kernels(
    nvcc: Path | None, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.kernels.cuda.device.find_nvcc", lambda: nvcc)
    with engine(tiny_folder("qwen3", **ONE_LAYER), "triton") as device:
        line = dict(device.card)["device"]
    assert "; attention by triton" in line
    assert ("pip install 'octavo[cuda]'" in line) == (nvcc is None)


@pytest.mark.usefixtures("interpreter")
def test_it_follows_grammars_as_the_host_does(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    """A jump while another step is in flight, a fork, an end, and a row without a grammar beside them."""
    folder = spelling_model(tiny_folder, tmp_path, **ONE_LAYER)
    drawn = SamplingParams(structured_outputs={"regex": "[ab]name12[cd]"}, max_tokens=20, seed=3, n=2)
    prompts, params, options = PROMPTS[::2], [drawn, GREEDY], {"skip_tokenizer_init": False}
    with engine(folder, "reference", **options) as host:
        expected = [[one.token_ids for one in output.outputs] for output in host.generate(prompts, params)]
    with engine(folder, "triton", async_scheduling=True, **options) as device:
        outputs = device.generate(prompts, params)
        assert [[one.token_ids for one in output.outputs] for output in outputs] == expected
        assert sum(event.num_forced for event in device.events if isinstance(event, Sampled)) == 4
        assert device.stats().num_used_blocks == 0
    assert all(re.fullmatch("[ab]name12[cd]", one.text) for one in outputs[0].outputs)


@pytest.mark.usefixtures("interpreter")
def test_it_tells_the_hosts_logprobs(tiny_folder: TinyFolder) -> None:
    """For draws with a history, for forks, for a prompt, and for tokens asked for by id."""
    params = SamplingParams(
        temperature=0.8, top_k=6, presence_penalty=0.7, seed=5, n=2, max_tokens=2, logprobs=3, prompt_logprobs=1,
        logprob_token_ids=[5, 6], ignore_eos=True, detokenize=False,
    )  # fmt: skip
    rows = []
    for backend in ("reference", "triton"):
        with engine(tiny_folder("qwen3", num_hidden_layers=2), backend, logprobs_mode="processed_logits") as llm:
            (output,) = llm.generate([3, 4], params)
        rows.append([row for one in output.outputs for row in one.logprobs] + output.prompt_logprobs[1:])
    assert len(rows[0]) == 5
    for host, device in zip(*rows, strict=True):
        assert list(device) == list(host)
        assert [one.rank for one in device.values()] == [one.rank for one in host.values()]
        expected = [one.logprob for one in host.values()]
        assert [one.logprob for one in device.values()] == pytest.approx(expected, abs=1e-3)


@pytest.mark.usefixtures("interpreter")
def test_it_finds_the_hosts_beams(tiny_folder: TinyFolder) -> None:
    """Beside other requests, with edited logits, and in chunks of a prompt."""
    beams = SamplingParams(use_beam_search=True, n=3, max_tokens=5, logprobs=1, detokenize=False)
    params = [beams, GREEDY, beams.replace(n=1, best_of=2, logprobs=None, logit_bias={5: -9.0, 8: 2.0})]
    found = []
    for backend, options in (("reference", {}), ("triton", {"max_num_batched_tokens": 24})):
        with engine(tiny_folder("qwen3", **ONE_LAYER), backend, **options) as llm:
            found.append(llm.generate(PROMPTS, params) + llm.generate(PROMPTS[:1], params[:1]))
            assert llm.stats().num_used_blocks == 0
    for host, device in zip(*found, strict=True):
        assert [one.token_ids for one in device.outputs] == [one.token_ids for one in host.outputs]
        for one, other in zip(device.outputs, host.outputs, strict=True):
            if other.cumulative_logprob is not None:
                assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-3)


@pytest.mark.usefixtures("interpreter")
def test_guesses_change_no_answer(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [GREEDY.replace(max_tokens=8), GREEDY.replace(n=2, temperature=1.0, seed=3, max_tokens=6, logprobs=0)]
    with engine(tiny_folder("qwen3", **ONE_LAYER), "reference") as host:
        expected = host.generate([[3, 4], [5]], params)
    computed = guess_next_tokens(monkeypatch, expected)
    with engine(tiny_folder("qwen3", **ONE_LAYER), "triton") as device:
        outputs = device.generate([[3, 4], [5]], params)
    got, wanted = ([[one.token_ids for one in output.outputs] for output in made] for made in (outputs, expected))
    assert got == wanted
    assert max(computed) > 2
    for one in outputs[1].outputs:
        assert [next(iter(row)) for row in one.logprobs] == one.token_ids


@pytest.mark.usefixtures("interpreter")
def test_op_by_op_it_gives_the_hosts_tokens(tiny_folder: TinyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    rows = []
    for backend, options in (("reference", {}), ("triton", {"trace_ops": True})):
        with engine(tiny_folder("qwen3", **ONE_LAYER), backend, **options) as llm:
            (output,) = llm.generate([[3, 4, 5]], GREEDY)
        rows.append(output.outputs[0].token_ids)
    assert rows[0] == rows[1]
    ops = [line.split()[0] for line in capfd.readouterr().err.splitlines() if " -> " in line]
    assert ops[:4] == ["embedding", "rms_norm", "linear", "rotary_kv_write"]
    assert ops.count("embedding") == 3


@pytest.mark.usefixtures("interpreter")
def test_costs_of_steps_are_measured_on_a_device(tiny_folder: TinyFolder) -> None:
    options = {"backend": "triton", "dtype": "float32", "max_model_len": 128, "max_num_seqs": 2}
    config = engine_config(
        model=str(tiny_folder("qwen3", **ONE_LAYER)),
        num_gpu_blocks_override=40,
        max_num_batched_tokens=24,
        **options,
    )
    with closing(executor_here(WorkerTask.of(config))) as executor:
        assert executor.shape.is_asynchronous
        timer = StepTimer(executor, Patience(1, 0.0))
        assert timer.decode(1, 20) > 0.0
        assert timer.ratios


@pytest.mark.usefixtures("interpreter")
def test_it_calls_users_functions(tiny_folder: TinyFolder) -> None:
    """Each step's before its late draw, with the tokens of the step before."""
    with engine(tiny_folder("qwen3", **ONE_LAYER), "triton", async_scheduling=True) as device:
        follow_functions(device)
