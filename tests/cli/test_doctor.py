"""The doctor's findings: facts of this machine, and a fix for each problem."""

import json
from importlib import metadata

import pytest

from octavo.cli import doctor
from octavo.cli.doctor import Finding
from octavo.cli.main import main
from octavo.kernels import inventory
from octavo.kernels.cuda import driver
from octavo.kernels.cuda_cpp import compile as cuda_compile
from octavo.kernels.inventory import Kernel


def test_the_doctor_finds_a_backend_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    assert {"machine", "python", "compiler", "backends", "models"} < set(found)
    by_name = {finding["name"]: finding for finding in found["backends"]}
    assert by_name["reference"] == {"name": "reference", "value": "works", "problem": None}
    assert any("cores usable" in finding["value"] for finding in found["machine"])


def test_the_doctor_lists_what_the_best_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "backends", lambda: {"triton": None, "cpu": None})
    by_name = {finding.name: finding.value for finding in doctor.family_findings()}
    assert by_name["dense"].startswith("on triton all of bert, deepseek_v2, ")
    assert "mpnet" not in by_name["dense"]
    assert (by_name["awq"], by_name["fp8"], by_name["mxfp4"]) == ("all", "all but gpt2", "gpt_oss")
    assert [finding.name for finding in doctor.code_findings()] == ["multiplied as they are"]
    monkeypatch.setattr(inventory, "backends", lambda: {"triton": "there is no GPU", "cpu": None})
    kept, dense = doctor.code_findings()
    assert "Q4_K" in kept.value
    assert dense.value == "U4 in groups of 128, sorted, NF4 in groups of 64"


def test_no_backend_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Finding("cpu", "does not work", "no C++ compiler; install g++")
    monkeypatch.setattr(doctor, "SECTIONS", {"backends": lambda: iter([broken])})
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "! cpu  does not work\n       no C++ compiler; install g++\n" in shown
    assert "No backend works here" in shown


@pytest.mark.parametrize(
    ("installed", "problem"),
    [("2.1", None), ("1.0", "octavo needs numpy>=1.26; run pip install 'numpy>=1.26'"), ("3.0rc1", None)],
)
def test_a_package_out_of_range_names_the_cure(
    installed: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=1.26", 'pytest; extra == "test"'])
    monkeypatch.setattr(metadata, "version", lambda name: installed)
    *_, package = doctor.python_findings()
    assert package == Finding("numpy", installed, problem)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package>=1"])
    *_, package = doctor.python_findings()
    assert package.value == "missing"
    assert package.problem == "octavo needs no-such-package>=1; run pip install 'no-such-package>=1'"


def test_the_doctor_says_which_attention_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "backends", lambda: {"triton": None})
    kernels = [Kernel("cuda", False, "there is no nvcc"), Kernel("hopper", True, None), Kernel("triton", False, None)]
    monkeypatch.setattr(inventory, "attention_kernels", lambda: kernels)
    monkeypatch.setattr("octavo.kernels.cuda_cpp.compile.find_nvcc", lambda: None)
    cuda, hopper, triton = doctor.attention_findings()
    assert cuda.problem == (
        "the Triton and Gluon kernels serve; pip install 'octavo[cuda]' brings nvcc and with it these"
    )
    assert (hopper.value, hopper.problem) == ("serves", None)
    assert triton.value == "serves what those above do not"


def test_the_doctor_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "backends", lambda: {"triton": "this machine has no NVIDIA GPU"})
    assert list(doctor.attention_findings()) == [Finding("on a GPU", "not here: this machine has no NVIDIA GPU")]


def test_small_sums_of_ranks_need_nvcc_and_gpus_that_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    near = {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)}
    monkeypatch.setattr(driver, "find_gpu", lambda index: "a GPU" if index < 3 else None)
    monkeypatch.setattr(driver, "reaches", lambda index, other: (index, other) in near)
    monkeypatch.setattr(cuda_compile, "find_nvcc", lambda: "nvcc")

    def found() -> str:
        return next(finding.value for finding in doctor.rank_findings() if finding.name == "small sums")

    assert found() == "by NCCL: there is no peer memory between cuda:2 and cuda:1"
    near.add((2, 1))
    assert found() == "over peer memory, between all GPUs"
    monkeypatch.setattr(cuda_compile, "find_nvcc", lambda: None)
    assert found() == "by NCCL; over peer memory with nvcc: pip install 'octavo[cuda]'"
