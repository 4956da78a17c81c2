"""octavo bench throughput, latency and startup, end to end on small workloads."""

import json
from pathlib import Path

import pytest

from octavo.cli.main import main

SMALL = ("--model", "smollm2", "--output-len", "3", "--max-model-len", "512")


def test_throughput_is_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    flags = ("--dataset-name", "ragged16", "--num-prompts", "3", "--n", "2", "--output-json", str(path))
    assert main(["bench", "throughput", *SMALL, *flags]) == 0
    result = json.loads(path.read_text())
    assert result["workload"]["dataset_name"] == "ragged16"
    (measured,) = result["results"]
    assert measured["num_requests"] == 3
    assert measured["total_output_tokens"] == 3 * 2 * 3
    assert measured["total_num_tokens"] == 16 + 24 + 32 + 18
    assert measured["output_tokens_per_second"] == pytest.approx(18 / measured["elapsed_time"])
    assert result["machine"]["cpu"]
    assert capsys.readouterr().out.startswith("octavo: ")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--dataset-name", "ragged16", "--input-len", "5"), "--input-len does not go with --dataset-name ragged16"),
        (("--num-prompts", "0"), "--num-prompts is 0, allowed is 1 or more"),
        (("--input-len", "0"), "--input-len is 0, allowed is 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "throughput", *SMALL, *flags]) == 2
    assert problem in capsys.readouterr().err


def test_latency_of_a_batch_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latency.json"
    flags = ("--input-len", "4", "--batch-size", "2", "--num-iters-warmup", "1", "--num-iters", "3")
    assert main(["bench", "latency", *SMALL, *flags, "--output-json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert len(result["latencies"]) == 3
    assert min(result["latencies"]) <= result["percentiles"]["50"] <= max(result["latencies"])
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 3)
    assert "50% percentile" in capsys.readouterr().out


def test_startup_is_measured_in_a_fresh_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "startup.json"
    flags = ("--num-iters-cold", "0", "--num-iters-warm", "1", "--max-model-len", "64")
    assert main(["bench", "startup", "--model", "smollm2", *flags, "--output-json", str(path)]) == 0
    (times,) = json.loads(path.read_text())["warm"]
    assert 0 < times["import"] < times["ready"] < times["first_token"] < times["process"]
    assert "warm" in capsys.readouterr().out
    assert main(["bench", "startup", "--model", "nosuch.gguf", *flags]) == 2
    assert "the engine did not start" in capsys.readouterr().err


def test_what_samples_save_is_counted_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = tmp_path / "sharing.json", tmp_path / "sharing.html"
    kept = ("--output-json", str(result), "--plot", str(page))
    model = ("smollm2", "--input-len", "40", "--output-len", "6", "--num-iters", "1", "--max-model-len", "512")
    assert main(["bench", "sharing", *model, "--n", "2,1", "--beam-width", "3", "--num-prompts", "3", *kept]) == 0
    found = json.loads(result.read_text())
    assert [(one["dataset"], one["n"]) for one in found["memory"]] == [
        *(("ShareGPT", 1), ("ShareGPT", 2), ("Alpaca", 1), ("Alpaca", 2), ("ShareGPT", 3), ("Alpaca", 3)),
    ]
    assert [one["beams"] for one in found["memory"]] == [False] * 4 + [True] * 2
    assert found["memory"][1]["memory_saved_paper"] == pytest.approx([0.162, 0.305])
    assert [(one["n"], one["shared"]) for one in found["time"]] == [(1, True), (1, False), (2, True), (2, False)]
    assert all(0 < one["step_s"] < 10 for one in found["time"])
    shared, apart = (one["kv_bytes_read_per_step"] for one in found["time"][2:])
    assert 0.5 < shared / apart < 0.7  # two full blocks of the prompt, and up to 13 tokens of each
    assert page.read_text().startswith("<!doctype html>")
    assert "the paper's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--n", "0,2"), "--n is '0,2', allowed are whole numbers from 1 to 256"),
        (("--n", "1.5"), "--n is '1.5', allowed are whole numbers from 1 to 256"),
        (("--beam-width", "2,0"), "--beam-width is '2,0', allowed are whole numbers from 1 to 256"),
        (("--plot", "a.gif"), "--plot a.gif: allowed are names that end in .html, .svg, .png"),
        (("--plot", "nowhere/a.svg"), "nowhere is not a folder"),
        (("--output-len", "3"), "--output-len is 3, allowed is 4 or more"),
        (("--block-size", "7"), "block_size is 7, allowed are 8, 16"),
        (("--max-model-len", "512"), "--max-model-len is for a model's engine, and no model is given"),
    ],
)
def test_sharing_that_cannot_be_measured_is_refused(
    flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sharing", *flags]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(("command", "flag"), [("latency", "--num-iters-warmup"), ("startup", "--num-iters-cold")])
def test_negative_counts_are_refused(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", command, flag, "-1"]) == 2
    assert f"{flag} is -1, allowed is 0 or more" in capsys.readouterr().err
