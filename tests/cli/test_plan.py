"""octavo plan and octavo doctor MODEL as their users see them, and on files and flags that are broken."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.cli.memory_table import measured_table
from octavo.errors import ConfigError
from octavo.kernels.cuda.known import known_gpu
from tests.conftest import TinyFolder
from tests.distributed.conftest import threaded_ranks
from tests.models.gguf_mutations import mutated_gguf
from tests.models.good_files import gguf_file
from tests.models.mutations import mutated_bytes, mutated_json

CONFIGS = Path(__file__).parents[2] / "examples/configs"
LLAMA = str(CONFIGS / "llama-3.1-8b")


def facts(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict:
    assert main(["plan", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_named_gpu_needs_neither_a_gpu_nor_weights(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, LLAMA, "--gpu", "h100")
    assert found["device"] == "H100 80GB, 79.1 GiB"
    assert [plan["tensor_parallel_size"] for plan in found["plans"]] == [1, 2, 4, 8]
    for plan in found["plans"]:
        assert plan["problem"] is None
        assert plan["kv_bytes_per_token"] * plan["tensor_parallel_size"] == 131_072
        parts = [plan[name] for name in ("weights", "activations", "workspace", "rows", "graphs", "system", "kv_cache")]
        assert sum(parts) == plan["total"]


def test_the_table_has_a_column_for_each_number_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LLAMA, "--gpu", "4090", "-tp", "2,4", "--context", "8k", "-v"]) == 0
    shown = capsys.readouterr().out
    assert "each of 2" in shown
    assert "requests of 8,000 at once" in shown
    assert "a step of 8,192 tokens in bfloat16" in shown


def test_each_stage_of_a_pipeline_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--gpu", "l40s", "-pp", "3", "-tp", "1,2")
    plans = facts(capsys, LLAMA, *options)["plans"]
    assert [(plan["tensor_parallel_size"], plan["stage"]) for plan in plans] == [
        (n, k) for n in (1, 2) for k in range(3)
    ]
    assert [layer for plan in plans[:3] for layer in plan["layers"]] == list(range(32))
    assert len({plan["num_blocks"] for plan in plans[:3]}) == 1  # each stage has as many as all have room for
    (whole,) = facts(capsys, LLAMA, "--gpu", "l40s", "-tp", "1")["plans"]
    assert sum(plan["weights"] for plan in plans[:3]) == pytest.approx(whole["weights"], rel=0.01)
    assert sum(plan["kv_bytes_per_token"] for plan in plans[:3]) == whole["kv_bytes_per_token"]
    assert plans[2]["activations"] > plans[1]["activations"]  # logits
    assert main(["plan", LLAMA, *options]) == 0
    head, layers = capsys.readouterr().out.splitlines()[2:4]
    assert "stage 2: each of 2" in head
    assert layers.split("  ")[-1].strip() == "22 to 31, head"


def test_a_wish_gets_flags_that_the_plan_then_fulfils(capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("--concurrency", "40", "--context", "4096")
    found = facts(capsys, LLAMA, "--gpu", "l40s", *wish)["suggestion"]
    assert found["works"]
    flags = [word for name, value in found["options"].items() for word in (f"--{name.replace('_', '-')}", str(value))]
    again = facts(capsys, LLAMA, "--gpu", "l40s", *flags)
    (plan,) = [plan for plan in again["plans"] if plan["tensor_parallel_size"] == 1]
    assert plan["num_blocks"] >= 40 * 4096 // 16


def test_what_cannot_fit_says_so_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, LLAMA, "--memory", "12GiB", "-tp", "1", code=1)
    assert "the KV cache holds 0 blocks" in found["plans"][0]["problem"]
    assert main(["plan", LLAMA, "--memory", "12GiB", "-tp", "1"]) == 1
    assert "planned are weights 15.0 GiB" in capsys.readouterr().out
    assert main(["plan", LLAMA, "--gpu", "l4", "--concurrency", "100k"]) == 1
    assert "which does not fit; at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        (("--gpu", "h1000"), "--gpu is 'h1000'; did you mean 'h100'?"),
        (("--gpu", "h100", "--backend", "cpu"), "computes on the CPU: drop one"),
        (("--memory", "much"), "--memory is 'much', allowed is a size such as 24GiB"),
        (("--memory", "0"), "--memory is '0'"),
        (
            ("--gpu", "h100", "-tp", "3"),
            "--tensor-parallel-size is 3, which does not divide the model's heads; allowed",
        ),
        (("--gpu", "h100", "-tp", "two"), "--tensor-parallel-size is 'two', allowed are numbers of GPUs"),
        (("--backend", "cpu", "-tp", "2"), "--tensor-parallel-size is for GPUs"),
        (("--backend", "cpu", "-pp", "2"), "--pipeline-parallel-size is for GPUs"),
        (("--gpu", "h100", "-pp", "0"), "--pipeline-parallel-size is '0', allowed is 1 to 1024"),
        (("--gpu", "h100", "-pp", "33"), "the model has 32 layers, and each stage needs one: allowed are 1 to 32"),
        (("--gpu", "h100", "-pp", "2", "--context", "64"), "suggest flags for a model in one stage"),
        (("--gpu", "h100", "--concurrency", "0"), "--concurrency is 0, allowed is 1 or more"),
        (("--gpu", "h100", "--context", "9G"), "max_model_len is 9663676416, allowed is 1 to 2147483647"),
        (("--gpu", "h100", "--concurrency", "1G"), "max_num_seqs is 1073741824, allowed is 1 to 1048576"),
        (("--gpu", "h100", "--context", "200000"), "max_model_len is 200000, allowed is up to 131072"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    argv: tuple[str, ...], refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", LLAMA, *argv]) == 2
    assert refusal in capsys.readouterr().err


def test_gpus_are_known_by_several_names() -> None:
    assert known_gpu("NVIDIA H100").name == known_gpu("h100-80gb").name == "H100 80GB"
    assert known_gpu("RTX 4090") == known_gpu("rtx4090") == known_gpu("4090")
    with pytest.raises(ConfigError, match="allowed are"):
        known_gpu("")


def test_the_doctor_compares_a_models_memory_with_its_plan(
    tiny_folder: TinyFolder, capsys: pytest.CaptureFixture[str], inline_executor: None
) -> None:
    argv = ["doctor", str(tiny_folder("llama")), "--backend", "cpu", "--max-num-seqs", "4", "--max-model-len", "64"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["weights"] == pytest.approx(found["planned"]["weights"], rel=0.02)
    assert main(argv) == 0
    header, *rows = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert header.split() == ["planned", "measured", "difference"]
    assert [row.split()[0] for row in rows] == ["weights", "activations", "workspace", "rows", "KV", "total"]


def test_the_doctor_measures_the_first_of_two_ranks(
    tiny_folder: TinyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.cli.doctor_memory.build_executor", threaded_ranks)
    argv = ["doctor", str(tiny_folder("llama")), "--backend", "cpu", "--max-num-seqs", "4", "--max-model-len", "64"]
    assert main([*argv, "-tp", "2", "--num-threads", "1", "--kv-cache-memory-bytes", "1048576", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for component in ("weights", "rows", "KV blocks"):
        assert found["measured"][component] == pytest.approx(found["planned"][component], abs=256), component


def test_a_total_counts_only_what_was_measured() -> None:
    total = measured_table({"weights": 100, "graphs": 50, "rows": 0}, {"weights": 80, "rows": 0})[-1]
    assert total.split() == ["total", "100", "bytes", "80", "bytes", "-20.0%"]


@pytest.mark.parametrize("device", [("--gpu", "a100"), ("--backend", "cpu")])
def test_broken_checkpoints_plan_or_are_refused_in_a_line(
    device: tuple[str, ...], tmp_path: Path, tiny_folder: TinyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_folder("llama").iterdir()}
    config = json.loads(files["config.json"])
    codes = set()
    for seed in range(40):
        rng = random.Random(seed)
        kind = seed % 3
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if kind == 0:
            (folder / "config.json").write_bytes(mutated_json(rng, config))
        elif kind == 1:
            weights = folder / "model.safetensors"
            weights.write_bytes(mutated_bytes(rng, files["model.safetensors"]))
        else:
            (folder / "model.gguf").write_bytes(mutated_gguf(rng, gguf_file(), "llama"))
        model = str(folder / "model.gguf" if kind == 2 else folder)
        options = ("--max-num-seqs", "8", "--concurrency", "2", "--context", "32")
        codes.add(code := main(["plan", model, *device, *options]))
        shown = capsys.readouterr()
        assert code in (0, 1, 2)
        assert (code == 2) == ("octavo: error: " in shown.err), shown.err
    assert {0, 2} <= codes
