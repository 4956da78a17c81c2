"""Output of `octavo bench serve`: a progress bar, a table, JSON under vLLM's keys, a plot."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.bench.online_report import NAMES, Outcome
from octavo.bench.plot import NOTE, Point, cells, draw
from octavo.cli.flags import add_flags, machine_facts
from octavo.cli.terminal_text import beside_one_another
from octavo.cli.written_files import check_folder, check_plot, write_file, write_plot
from octavo.errors import ConfigError

_TOTALS = {
    "completed": ("Successful requests", ",d"),
    "failed": ("Failed requests", ",d"),
    "duration": ("Duration (s)", ",.2f"),
    "total_input_tokens": ("Input tokens", ",d"),
    "total_cached_tokens": ("Input tokens the server had cached", ",d"),
    "total_output_tokens": ("Output tokens", ",d"),
    "request_throughput": ("Requests/s", ",.2f"),
    "request_goodput": ("Requests/s within limits (goodput)", ",.2f"),
    "output_throughput": ("Output tokens/s", ",.1f"),
    "max_output_tokens_per_s": ("Output tokens/s, peak second", ",.1f"),
    "total_token_throughput": ("Total tokens/s", ",.1f"),
    "max_concurrent_requests": ("Concurrent requests, peak", ",d"),
    "client_cpu_share": ("Client's share of a core", ".0%"),
}


_FLAGS = {
    "percentile-metrics": ("NAMES", "ttft,tpot,itl", "of ttft, tpot, itl, e2el"),
    "metric-percentiles": ("X[,X...]", "99", "such as 50,90,99.9"),
    "result-dir": ("DIR", None, "default: here"),
    "result-filename": ("FILE", None, "default: backend, rate, model and date"),
    "label": ("TEXT", None, "prefix of the file's name"),
    "plot": ("FILE", None, "draw latency against load; .html, .svg, or .png, which needs the extra plot"),
}
_SWITCHES = {
    "save-result": "write the result as JSON",
    "save-detailed": "also write each request's times, lengths and text",
    "append-result": "add a line to the file instead of a new file",
    "disable-tqdm": "no progress bar",
}


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    goodput = "count requests within limits, such as ttft:200 tpot:50 e2el:5000"
    group.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help=goodput)
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="extra keys for the result")
    add_flags(group, _FLAGS)
    for name, text in _SWITCHES.items():
        group.add_argument(f"--{name}", action="store_true", help=text)


def say(line: str) -> None:
    print(f"octavo: {line}", file=sys.stderr, flush=True)


def table(result: Mapping[str, Any], pace: str) -> str:
    """One result as a table; values that were not measured are left out."""
    lines = [f" {pace} ".center(58, "=")]
    for key, (name, form) in _TOTALS.items():
        if result.get(key) is not None and (key != "total_cached_tokens" or result[key]):
            lines.append(f"{name:<40}{format(result[key], form):>18}")
    for metric, name in NAMES.items():
        lines += _latency_lines(result, metric, f"{metric.upper()}, {name}")
    if "long_prefill" in result:
        long = result["long_prefill"]
        counts = f"{long['completed']} answered, {long['failed']} failed, {long['cut_off']} cut off at the end"
        lines += _latency_lines(long, "ttft", f"Long prompts beside them: TTFT; {counts}")
    return "\n".join([*lines, "=" * 58])


def _latency_lines(result: Mapping[str, Any], metric: str, title: str) -> list[str]:
    ending = f"_{metric}_ms"
    values = {key.removesuffix(ending): value for key, value in result.items() if key.endswith(ending)}
    if not values:
        return []
    shown = [f"{name + ' (ms)':<40}{'-' if value is None else f'{value:,.2f}':>18}" for name, value in values.items()]
    return [f" {title} ".center(58, "-"), *shown]


class Results:
    """Collects one result per rate. Output paths are checked before anything is measured."""

    def __init__(self, args: argparse.Namespace, rates: tuple[float, ...]) -> None:
        self._args = args
        self._is_saved = args.save_result or args.save_detailed or args.append_result
        self._metadata = dict(_pair(one) for one in args.metadata)
        self._points: list[Point] = []
        self._num_failed = 0
        self._stamp = time.strftime("%Y%m%d-%H%M%S")
        self._title = ""
        if len(rates) > 1 and args.result_filename and not args.append_result and self._is_saved:
            raise ConfigError(
                f"--result-filename {args.result_filename} is one file for {len(rates)} request rates: "
                "add --append-result for one line each, or drop the name"
            )
        if (args.result_filename or args.result_dir) and not self._is_saved:
            raise ConfigError("--result-filename and --result-dir need --save-result")
        check_plot(args.plot)
        if args.plot and args.ramp_up_strategy:
            raise ConfigError(
                "--plot draws latency against steady rates, and --ramp-up-strategy has none: drop one of the two"
            )
        check_folder("the result", Path(args.result_dir or "."))

    def add(
        self, asked: Mapping[str, Any], result: Mapping[str, Any], more: Mapping[str, Any], outcome: Outcome
    ) -> None:
        self._num_failed += result["failed"]
        self._title = f"{asked['model_id']}, {asked['dataset_name']}"
        rate = float(asked["request_rate"])
        times = {
            (metric, percentage): outcome.percentile_ms(metric, percentage)
            for metric in ("ttft", "tpot")
            for percentage in (50, 99)
        }
        self._points.append(Point(rate, result["request_throughput"], result["output_throughput"], times))
        if self._is_saved:
            date = {"date": self._stamp, "machine": machine_facts()}
            self._write(self._path(asked), {**date, **asked, **self._metadata, **result, **more})

    def finish(self) -> int:
        if len(self._points) > 1:
            print("", *beside_one_another(cells(self._points)), "latencies in ms", sep="\n", flush=True)
        if self._args.plot:
            write_plot(self._args.plot, draw(self._points, self._title), cells(self._points), NOTE)
            say(f"drawn in {self._args.plot}")
        return 1 if self._num_failed else 0

    def _path(self, asked: Mapping[str, Any]) -> Path:
        args = self._args
        label = args.label or args.backend
        limit = "" if asked["max_concurrency"] is None else f"-concurrency{asked['max_concurrency']}"
        model = str(asked["model_id"]).rstrip("/").split("/")[-1]
        rate = f"{asked['request_rate']}qps"
        if args.ramp_up_strategy:
            rate = f"ramp-up-{args.ramp_up_strategy}-{args.ramp_up_start_rps:g}qps-{args.ramp_up_end_rps:g}qps"
        name = args.result_filename or f"{label}-{rate}{limit}-{model}-{self._stamp}.json"
        return Path(args.result_dir or ".") / name

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        indent = None if self._args.append_result or self._args.save_detailed else 2
        text = json.dumps(record, indent=indent) + "\n"
        write_file("the result", path, text, is_added=self._args.append_result)
        say(f"written to {path}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--metadata {text} is not KEY=VALUE")
    return key, value
