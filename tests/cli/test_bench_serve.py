"""octavo bench serve, end to end against a scripted server."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from tests.bench.fake_server import FakeServer

PNG = b"\x89PNG\r\n\x1a\n"
LINEAR = ("--ramp-up-strategy", "linear")
RAMP = (*LINEAR, "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "5")
FEW = ("--num-prompts", "5", "--input-len", "6", "--output-len", "4")


def bench(fake: FakeServer, *flags: str) -> int:
    return main(["bench", "serve", "--base-url", fake.url, "--num-client-procs", "1", *flags])


def kept(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_a_run_is_shown_and_kept_under_vllms_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--save-result", "--result-dir", str(tmp_path), "--metadata", "card=none", "--max-concurrency", "2")
    with FakeServer(gap_s=0.01) as fake:
        assert bench(fake, *FEW, *flags, "--goodput", "ttft:60000", "--metric-percentiles", "50,99") == 0
    result = kept(tmp_path)
    expected = {"backend": "openai", "model_id": "fake/model", "num_prompts": 5, "request_rate": "inf", "card": "none"}
    expected |= {"completed": 5, "failed": 0, "total_input_tokens": 30, "total_output_tokens": 20, "max_concurrency": 2}
    assert expected.items() <= result.items()
    assert result["request_goodput"] == result["request_throughput"] == pytest.approx(5 / result["duration"])
    assert result["output_throughput"] == pytest.approx(20 / result["duration"])
    for metric in ("ttft", "tpot", "itl"):
        assert 0 < result[f"p50_{metric}_ms"] == result[f"median_{metric}_ms"] <= result[f"p99_{metric}_ms"]
    assert 8 < result["mean_tpot_ms"] < 200
    assert result["machine"]["cpu"]
    assert "itls" not in result
    (name,) = [path.name for path in tmp_path.iterdir()]
    assert name.startswith("openai-infqps-concurrency2-model-")
    shown = capsys.readouterr().out
    assert "Successful requests" in shown
    assert "TTFT, time to first token" in shown


def test_every_request_can_be_kept(tmp_path: Path) -> None:
    with FakeServer() as fake:
        assert bench(fake, *FEW, "--save-detailed", "--result-dir", str(tmp_path)) == 0
    result = kept(tmp_path)
    assert result["input_lens"] == [6] * 5
    assert result["output_lens"] == [4] * 5
    assert [len(gaps) for gaps in result["itls"]] == [3] * 5
    assert result["generated_texts"] == ["t0 t1 t2 t3 "] * 5


def test_a_request_carries_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with FakeServer() as fake:
        flags = ("--temperature", "0", "--top-p", "0.9", "--extra-body", '{"min_tokens": 2}', "--header", "X-A=b=c")
        assert bench(fake, *FEW, *flags, "--model", "other", "--num-warmups", "2") == 0
        assert bench(fake, *FEW, "--api-key", "mine", "--no-ignore-eos") == 0
    path, headers, body = fake.seen[0]
    assert path == "/v1/completions"
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-a"] == "b=c"
    asked = {"model": "other", "temperature": 0.0, "top_p": 0.9, "min_tokens": 2, "ignore_eos": True, "max_tokens": 4}
    assert asked.items() <= body.items()
    assert len(fake.seen) == (1 + 2 + 5) + (1 + 1 + 5)  # a try, warm-ups, requests; the model's name, a try, requests
    _, headers, body = fake.seen[-1]
    assert headers["authorization"] == "Bearer mine"
    assert body["model"] == "fake/model"
    assert "ignore_eos" not in body
    assert "temperature" not in body


def test_vllms_other_flags_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        flags = ("--endpoint-type", "vllm", "--model", "folder", "--served-model-name", "name", "--trust-remote-code")
        assert bench(fake, *FEW, *flags, "--no-stream", "--request-id-prefix", "x", "--tokenizer-mode", "auto") == 0
        assert {body["model"] for _, _, body in fake.seen} == {"name"}
    told = capsys.readouterr().err
    assert "--trust-remote-code changes nothing here: no code of a checkpoint is executed" in told
    assert "--request-id-prefix x changes nothing here: requests have no ids" in told


def test_a_sweep_has_other_prompts_at_each_rate_and_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, picture, page = tmp_path / "sweep.jsonl", tmp_path / "sweep.svg", tmp_path / "sweep.html"
    flags = ("--request-rate", "50,100,inf", "--append-result", "--result-filename", "sweep.jsonl", "--result-dir")
    with FakeServer(gap_s=0.002) as fake:
        assert bench(fake, *FEW, *flags, str(tmp_path), "--plot", str(page)) == 0
        prompts = [tuple(prompt) for prompt in fake.prompts()]
        assert bench(fake, *FEW, "--plot", str(picture)) == 0
    assert len(set(prompts)) == 1 + 15
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [result["request_rate"] for result in results] == [50.0, 100.0, "inf"]
    assert page.read_text().startswith("<!doctype html>")
    assert "∞" in page.read_text()
    assert picture.read_text().startswith("<svg ")
    shown = capsys.readouterr().out.splitlines()
    (head,) = [number for number, line in enumerate(shown) if line.startswith("asked for  requests/s")]
    assert [line.split()[0] for line in shown[head + 1 : head + 4]] == ["50", "100", "∞"]


def test_a_sweep_is_drawn_as_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    with FakeServer() as fake:
        assert bench(fake, *FEW, "--request-rate", "100,inf", "--plot", str(tmp_path / "x.png")) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


def test_a_png_without_matplotlib_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octavo.pictures.png.find_spec", lambda name: None)
    with FakeServer() as fake:
        assert bench(fake, *FEW, "--model", "m", "--plot", "x.png") == 2
        assert fake.seen == []
    assert "--plot x.png: a .png needs matplotlib, which is not installed: pip install 'octavo[plot]'" in (
        capsys.readouterr().err
    )


def test_a_rate_that_ramps_up_is_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = ("--ramp-up-strategy", "exponential", "--ramp-up-start-rps", "20", "--ramp-up-end-rps", "200")
    with FakeServer() as fake:
        assert bench(fake, *FEW, *ramp, "--burstiness", "1000", "--save-detailed", "--result-dir", str(tmp_path)) == 0
    result = kept(tmp_path)
    expected = {"request_rate": "inf", "ramp_up_strategy": "exponential", "ramp_up_start_rps": 20.0}
    assert (expected | {"ramp_up_end_rps": 200.0}).items() <= result.items()
    assert next(tmp_path.iterdir()).name.startswith("openai-ramp-up-exponential-20qps-200qps-model-")
    assert result["start_times"] == sorted(result["start_times"])
    assert result["start_times"][1] >= 0.04
    assert "20 to 200 requests/s, exponential" in capsys.readouterr().out


def test_chats_are_asked_in_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "Hi", "output_tokens": 3}\n{"prompt": "Ho"}\n', encoding="utf-8")
    flags = ("--backend", "openai-chat", "--dataset-name", "custom", "--dataset-path", str(path))
    with FakeServer(first_s=0.05) as fake:
        assert bench(fake, *flags, "--num-prompts", "2", "--disable-shuffle", "--request-rate", "100,100") == 0
    path, _, body = fake.seen[2]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["max_completion_tokens"] == 3
    assert "ignore_eos" not in body
    shown = capsys.readouterr()
    assert "these prompts were sent before" in shown.err
    assert "Output tokens                                          259" in shown.out


def test_random_chats_are_written_by_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        assert bench(fake, *FEW, "--backend", "openai-chat", "--tokenizer", "smollm2") == 0
        assert bench(fake, *FEW, "--backend", "openai-chat") == 2
    assert isinstance(fake.seen[-2][2]["messages"][0]["content"], str)
    assert "give --tokenizer to write them as text" in capsys.readouterr().err


def test_long_prompts_beside_the_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--long-prefill-every", "0.05", "--long-prefill-len", "40", "--request-rate", "20")
    with FakeServer(gap_s=0.01) as fake:
        assert bench(fake, *FEW, *flags, "--save-result", "--result-dir", str(tmp_path)) == 0
    result = kept(tmp_path)
    assert result["completed"] == 5
    assert result["total_input_tokens"] == 30
    assert result["long_prefill"]["completed"] >= 2
    assert result["long_prefill"]["mean_ttft_ms"] > 0
    assert "Long prompts beside them" in capsys.readouterr().out


def test_the_stall_shape_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.bench.datasets import random_requests
    from octavo.cli import bench_serve_dataset as shapes

    few = functools.partial(random_requests, 6, 4, 2)
    monkeypatch.setattr("octavo.bench.datasets.stall_requests", lambda vocab_size: few(vocab_size=vocab_size))
    monkeypatch.setattr(shapes, "STALL_RATE", 20.0)
    monkeypatch.setattr(shapes, "STALL_EVERY", 0.1)
    with FakeServer() as fake:
        assert bench(fake, "--dataset-name", "stall") == 0
    lens = [len(prompt) for prompt in fake.prompts()]
    assert lens.count(4) == 6 + 1
    assert lens.count(8192) >= 1


def test_failures_are_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(fault="refuse", fault_every=3) as fake:
        assert bench(fake, *FEW, "--ready-check-timeout-sec", "30") == 1
    shown = capsys.readouterr()
    assert 'HTTP 429: {"error": {"message": "too busy"}}' in shown.err
    assert "Failed requests                                          0" not in shown.out


def test_one_request_that_hangs_does_not_hang_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(fault="hang", fault_every=5) as fake:  # the model's name, a try, and the fourth of five
        assert bench(fake, *FEW, "--model", "m", "--request-timeout", "0.5", "--ready-check-timeout-sec", "20") == 1
    shown = capsys.readouterr()
    assert "1 x TimeoutError: no complete answer within 0.5 s, see --request-timeout" in shown.err
    assert "Failed requests                                          1" in shown.out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--dataset-name", "chat", "--num-prompts", "3"), "--num-prompts does not go with --dataset-name chat"),
        (("--dataset-path", "x"), "--dataset-path does not go with --dataset-name random"),
        (("--dataset-name", "custom"), "needs --dataset-path FILE"),
        (("--input-len", "3", "--random-input-len", "3"), "--input-len and --random-input-len are both given"),
        (("--random-range-ratio", "1"), "--random-range-ratio is 1.0, allowed is 0 to below 1"),
        (("--dataset-name", "hf"), "'hf' is not supported: write its prompts as lines of JSON, and use --dataset-name"),
        (("--hf-split", "train"), "--hf-split train is not supported yet: no hub data set is read"),
        (("--profile",), "--profile is not supported yet"),
        (("--lora-modules", "a"), "--lora-modules a is not supported yet: --model takes the name of an adapter"),
        (("--num-prompts", "0"), "--num-prompts is 0, allowed is 1 or more"),
        (("--vocab-size", "7"), "--vocab-size is 7, allowed is 100 or more"),
        (("--request-rate", "0"), "--request-rate is '0', allowed are numbers above 0 and inf"),
        (("--request-rate", "1,x"), "--request-rate is '1,x'"),
        (("--ramp-up-start-rps", "1"), "--ramp-up-start-rps needs --ramp-up-strategy, which is linear or exponential"),
        ((*LINEAR, "--ramp-up-start-rps", "1"), "--ramp-up-strategy linear needs --ramp-up-end-rps"),
        ((*RAMP, "--request-rate", "3"), "--request-rate 3 and --ramp-up-strategy both set the rate: drop one"),
        ((*RAMP, "--plot", "x.svg"), "--plot draws latency against steady rates"),
        ((*RAMP, "--ramp-up-start-rps", "9"), "--ramp-up-start-rps is 9, allowed is up to --ramp-up-end-rps"),
        ((*RAMP, "--ramp-up-start-rps", "0"), "--ramp-up-start-rps is 0, allowed are numbers above 0"),
        (("--request-timeout", "0"), "--request-timeout is 0, allowed are seconds above 0"),
        (("--burstiness", "0"), "--burstiness is 0.0, allowed is above 0"),
        (("--long-prefill-every", "-1"), "--long-prefill-every is -1.0, allowed is above 0"),
        (("--long-prefill-len", "9"), "--long-prefill-len needs --long-prefill-every"),
        (("--goodput", "itl:3"), "--goodput itl:3 is not METRIC:MILLISECONDS"),
        (("--percentile-metrics", "ttft,x"), "--percentile-metrics has 'x'"),
        (("--metric-percentiles", "101"), "--metric-percentiles is '101'"),
        (("--extra-body", "[1]"), "--extra-body is [1], allowed is a JSON object"),
        (("--extra-body", '{"stream": false}'), "--extra-body has stream false"),
        (("--extra-body", '{"n": 0}'), "--extra-body has n 0, allowed is 1 or more"),
        (("--extra-body", "{"), "--extra-body is not valid JSON"),
        (("--header", "X"), "--header X is not NAME=VALUE"),
        (("--endpoint", "v1"), "--endpoint is 'v1', allowed is a path that begins with /"),
        (("--metadata", "x"), "--metadata x is not KEY=VALUE"),
        (("--plot", "x.gif"), "--plot x.gif: allowed are names that end in .html, .svg, .png"),
        (("--result-dir", "no/such", "--save-result"), "no/such is not a folder"),
        (("--result-filename", "x"), "need --save-result"),
        (("--request-rate", "1,2", "--result-filename", "x", "--save-result"), "add --append-result"),
        (("--ready-check-timeout-sec", "-1"), "--ready-check-timeout-sec is -1.0, allowed is 0 or more"),
        (("--base-url", "localhost:8000"), "--base-url is 'localhost:8000'"),
        (("--port", "0"), "--port is 0, allowed is 1 to 65535"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--model", "m", *flags]) == 2
    assert problem in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        pass
    assert bench(fake, *FEW) == 2
    assert "is the server running?" in capsys.readouterr().err
    assert bench(fake, *FEW, "--model", "m", "--ready-check-timeout-sec", "1") == 2
    assert "did not answer a first request: " in capsys.readouterr().err
