"""octavo bench serve: latency and throughput of a server under load, under vLLM's flag names.

octavo bench serve --dataset-name random --random-input-len 512 --random-output-len 128 --request-rate 4
octavo bench serve --dataset-name chat --request-rate 1,2,4,8,inf --plot latency.html
octavo bench serve --ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 20
octavo bench serve --dataset-name stall
octavo bench serve --base-url https://api.example.org --backend openai-chat --dataset-name custom --dataset-path f.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict, replace
from typing import Any, get_args

from octavo.bench.datasets import BenchRequest
from octavo.bench.http_client import DEFAULT_TIMEOUT_S, Target
from octavo.bench.load import RampUpStrategy
from octavo.bench.online import ENDPOINTS, Backend, Form, Server, Timing, first_model
from octavo.bench.online_report import METRICS, Metric, details, parse_goodput, summary, warnings
from octavo.cli.bench_serve_dataset import Dataset, add_dataset_flags, check_dataset_flags, open_dataset
from octavo.cli.bench_serve_output import Results, add_result_flags, say, table
from octavo.cli.bench_vllm_flags import SERVE_FLAGS
from octavo.cli.flags import add_flags, check_counts, check_not_read, numbers_of
from octavo.cli.parser import CommandParser
from octavo.cli.progress_bar import progress_bar
from octavo.cli.sampling_flags import add_sampling_flag
from octavo.env import openai_api_key
from octavo.errors import ConfigError
from octavo.sampling_params import parameters_that

_SAMPLING = ("temperature", *parameters_that("filters"), *parameters_that("edits"), "logprobs")

COMMON = (
    *("--base-url", "--host", "--port", "--api-key", "--model", "--backend", "--dataset-name", "--num-prompts"),
    *("--random-input-len", "--random-output-len", "--request-rate", "--max-concurrency", "--plot", "--save-result"),
)

_SERVER_FLAGS = {
    "base-url": ("URL", None, "http(s)://HOST[:PORT][/PREFIX]; overrides host and port"),
    "host": ("HOST", "127.0.0.1", "the server's address"),
    "port": ("N", 8000, "the server's port"),
    "endpoint": ("PATH", None, "default: /v1/completions, or /v1/chat/completions for chats"),
    "api-key": ("KEY", None, "sent as a bearer token; also OPENAI_API_KEY"),
    "extra-body": ("JSON", None, "extra fields for every request"),
    "request-timeout": ("S", DEFAULT_TIMEOUT_S, "longer requests are cut off and count as failed; inf: never"),
    "ready-check-timeout-sec": ("S", 0.0, "time to wait for the server to answer; 0: one try"),
}
_LOAD_FLAGS = {
    "request-rate": ("X[,X...]", None, "requests per second, inf: all at once; several run in turn (inf)"),
    "ramp-up-start-rps": ("X", None, "first rate, in requests per second"),
    "ramp-up-end-rps": ("X", None, "last rate, in requests per second"),
    "burstiness": ("X", 1.0, "1: a Poisson process; below 1: bursts; above 1: more even"),
    "max-concurrency": ("N", None, "limit of concurrent requests"),
    "num-warmups": ("N", 0, "warm-up requests"),
    "num-client-procs": ("N", None, "client processes; default: one per 400 streams, at most half of the cores"),
    "long-prefill-every": ("S", None, "also send a long prompt every S seconds, reported separately"),
    "long-prefill-len": ("N", None, "tokens per long prompt (8192)"),
}


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model("its name on the server; default: the first of /v1/models", is_needed=False)
    parser.lacks(SERVE_FLAGS)
    server = parser.add_argument_group("server")
    kinds = "openai, vllm: completions of token ids or text; openai-chat: chats of text (default: openai)"
    server.add_argument("--backend", "--endpoint-type", choices=get_args(Backend), default="openai", help=kinds)
    server.add_argument(
        "--served-model-name", metavar="NAME", help="the model's name on the server, if --model is another"
    )
    server.add_argument("--header", nargs="+", default=[], metavar="NAME=VALUE", help="extra headers")
    add_flags(server, _SERVER_FLAGS)
    add_dataset_flags(parser)
    load = parser.add_argument_group("load")
    ramp = "in place of --request-rate: grow the rate by an equal amount, or an equal factor, per request"
    load.add_argument("--ramp-up-strategy", choices=get_args(RampUpStrategy), help=ramp)
    add_flags(load, _LOAD_FLAGS)
    sampling = parser.add_argument_group("sampling", "default: the server's own defaults")
    for name in _SAMPLING:
        add_sampling_flag(sampling, name)
    past = "generate past the end token; default: yes, except for sharegpt and custom"
    sampling.add_argument("--ignore-eos", action=argparse.BooleanOptionalAction, help=past)
    add_result_flags(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)
    goodput_ms, metrics = parse_goodput(args.goodput), _metrics(args)
    percentages = numbers_of("--metric-percentiles", args.metric_percentiles, "numbers from 0 to 100", 0, 100)
    target, options = _target(args), _options(args)
    dataset = open_dataset(args)
    timing, results = _timing(args, dataset), Results(args, dataset.rates)
    requests = dataset.requests(0)
    server = Server(target, _form(args, target, dataset, options))
    server.wait_until_ready(requests[0], args.ready_check_timeout_sec)
    server.warm_up(requests[0], args.num_warmups)
    for point, rate in enumerate(dataset.rates):
        requests = dataset.requests(point)
        if point > 0 and not dataset.is_drawn:
            say("these prompts were sent before: a server with a prefix cache answers them faster now")
        timed = replace(timing, request_rate=rate)
        with progress_bar(timed.pace, len(requests), is_disabled=args.disable_tqdm) as advance:
            outcome = server.measure(requests, timed, advance, dataset.long_requests(point), args.save_detailed)
        result = summary(outcome, metrics, percentages, goodput_ms)
        print(table(result, timed.pace), flush=True)
        for warning in warnings(result, outcome.errors):
            say(warning)
        more = details(outcome) if args.save_detailed else {}
        results.add(_asked(args, server, timed, requests), result, more, outcome)
    return results.finish()


def _check(args: argparse.Namespace) -> None:
    """Checks that need only the flags, before any prompt is drawn or sent."""
    check_counts(args, "num_prompts", "max_concurrency", "num_client_procs")
    check_counts(args, "num_warmups", least=0)
    check_dataset_flags(args)
    result = os.path.join(args.result_dir or "", args.result_filename) if args.result_filename else None
    for flag, path in (("--result-filename", result), ("--plot", args.plot)):
        check_not_read(flag, path, {"--dataset-path": args.dataset_path})
    if not args.ready_check_timeout_sec >= 0:
        raise ConfigError(f"--ready-check-timeout-sec is {args.ready_check_timeout_sec}, allowed is 0 or more")
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}, allowed is 1 to 65535")
    if args.endpoint is not None and (not args.endpoint.startswith("/") or len(args.endpoint.split()) != 1):
        raise ConfigError(
            f"--endpoint is {args.endpoint!r}, allowed is a path that begins with /, such as /v1/completions"
        )


def _target(args: argparse.Namespace) -> Target:
    key = args.api_key or openai_api_key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for header in args.header:
        name, equals, value = header.partition("=")
        if not equals:
            raise ConfigError(f"--header {header} is not NAME=VALUE")
        headers[name] = value
    return Target(args.base_url or f"http://{args.host}:{args.port}", headers, args.request_timeout)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Fields common to all requests: the sampling flags, overridden by --extra-body."""
    given = vars(args)
    options = {name: given[name] for name in _SAMPLING if name in given}
    if args.extra_body is None:
        return options
    try:
        extra = json.loads(args.extra_body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--extra-body is not valid JSON: {error}: {args.extra_body}") from None
    if not isinstance(extra, dict):
        raise ConfigError(f'--extra-body is {args.extra_body}, allowed is a JSON object such as {{"seed": 5}}')
    if extra.get("stream") is False:
        raise ConfigError("--extra-body has stream false, but only streams are timed: drop it")
    n = extra.get("n", 1)
    if type(n) is not int or n < 1:
        raise ConfigError(f"--extra-body has n {n!r}, allowed is 1 or more")
    return options | extra


def _form(args: argparse.Namespace, target: Target, dataset: Dataset, options: dict[str, Any]) -> Form:
    endpoint = args.endpoint or ENDPOINTS[args.backend]
    ignore_eos = dataset.is_drawn if args.ignore_eos is None else args.ignore_eos
    return Form(
        args.backend, endpoint, args.served_model_name or args.model or first_model(target), ignore_eos, options
    )


def _timing(args: argparse.Namespace, dataset: Dataset) -> Timing:
    return Timing(
        ramp_up=dataset.ramp_up,
        burstiness=args.burstiness,
        max_concurrency=args.max_concurrency,
        seed=args.seed,
        num_procs=args.num_client_procs,
        long_every=dataset.long_every,
    )


def _metrics(args: argparse.Namespace) -> list[Metric]:
    text: str = args.percentile_metrics
    for name in text.split(","):
        if name not in METRICS:
            raise ConfigError(f"--percentile-metrics has {name!r}, allowed are {', '.join(METRICS)}, joined by commas")
    return [metric for metric in METRICS if metric in text.split(",")]


def _asked(args: argparse.Namespace, server: Server, timing: Timing, requests: list[BenchRequest]) -> dict[str, Any]:
    """The parameters of a run under vLLM's keys. An infinite rate is the word inf: JSON has no such number."""
    ramp_up = {} if timing.ramp_up is None else asdict(timing.ramp_up)  # vLLM writes these keys only for a ramp-up
    return {
        "endpoint_type": args.backend,
        "backend": args.backend,
        "label": args.label,
        "model_id": server.form.model,
        "tokenizer_id": args.tokenizer,
        "dataset_name": args.dataset_name,
        "num_prompts": len(requests),
        "request_rate": "inf" if math.isinf(timing.request_rate) else timing.request_rate,
        **{f"ramp_up_{name}": value for name, value in ramp_up.items()},
        "burstiness": timing.burstiness,
        "max_concurrency": timing.max_concurrency,
        "num_client_procs": timing.processes(len(requests)),
        "seed": timing.seed,
    }
