"""octavo bench throughput, latency and startup, end to end on small workloads."""

import json
from pathlib import Path

import pytest

from octavo.bench.workloads import Work
from octavo.cli import bench_throughput
from octavo.cli.bench_throughput_dataset import settle_dataset, workload_of
from octavo.cli.main import main, parser_of
from octavo.text.tokenizer import named_tokenizer

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


def asked(*flags: str) -> list[Work]:
    args = parser_of("bench throughput", bench_throughput).parse(["smollm2", *flags])
    settle_dataset(args)
    return workload_of(args)


def test_conversations_of_a_file_are_measured(tmp_path: Path) -> None:
    """--dataset-path alone is ShareGPT's, as in vLLM."""
    path, result = tmp_path / "sharegpt.json", tmp_path / "result.json"
    turns = ["Tell me about the moon", "It is round and far away"]
    path.write_text(json.dumps([{"conversations": [{"value": turn} for turn in turns]}]))
    question, answer = (tuple(named_tokenizer("smollm2").encode(turn)) for turn in turns)
    given = ("--dataset-path", str(path), "--num-prompts", "3")
    assert asked(*given, "--n", "2") == [Work(question, 2, len(answer))] * 3
    assert asked(*given, "--no-oversample", "--sharegpt-output-len", "4") == [Work(question, 1, 4)]
    assert main(["bench", "throughput", *SMALL, *given, "--output-json", str(result)]) == 0
    (measured,) = json.loads(result.read_text())["results"]
    assert (measured["num_requests"], measured["total_num_tokens"]) == (3, 3 * (len(question) + 3))


def test_lines_of_a_file_are_read_by_the_model_s_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"prompt": "one two three"}\n{"prompt": [1, 2, 3], "output_tokens": 5}\n')
    given = ("--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "2", "--disable-shuffle")
    words = tuple(named_tokenizer("smollm2").encode("one two three"))
    assert asked(*given) == [Work(words, 1, 256), Work((1, 2, 3), 1, 5)]
    assert asked(*given, "--custom-output-len", "7", "--n", "3") == [Work(words, 3, 7), Work((1, 2, 3), 3, 7)]


def test_random_lengths_and_prefix_as_in_vllm() -> None:
    flags = ("--random-input-len", "20", "--random-output-len", "4", "--random-range-ratio", "0.5", "--prefix-len", "7")
    works = asked(*flags, "--num-prompts", "500", "--disable-detokenize")
    assert {len(work.prompt_token_ids) for work in works} == set(range(7 + 10, 7 + 31))
    assert {work.output_len for work in works} == set(range(2, 7))
    assert len({work.prompt_token_ids[:7] for work in works}) == 1


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--dataset-name", "ragged16", "--input-len", "5"), "--input-len does not go with --dataset-name ragged16"),
        (("--dataset-name", "mixed"), "--output-len does not go with --dataset-name mixed, which is fully fixed"),
        (("--dataset-name", "custom"), "--dataset-name custom needs --dataset-path FILE"),
        (("--no-oversample",), "--no-oversample does not go with --dataset-name random; it goes with sharegpt, custom"),
        (("--dataset-name", "sonnet"), "'sonnet' is not supported: random with --random-prefix-len has a prefix"),
        (("--dataset-name", "x"), "'x' is not supported; allowed are random, ragged16, single, "),
        (("--async-engine",), "--async-engine is not supported yet: the engine runs in this process"),
        (("--random-range-ratio", "1"), "--random-range-ratio is 1.0, allowed is 0 to below 1"),
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
