"""The whole engine on a GPU, random weights: the named workloads in one process, and the kernels that ran.

    python -m benchmarks.gpu_engine qwen3-0.6b single mixed chat prefill [--repeats 3] [--profile mixed] [--set K=V]

Models are folders of examples/configs. Each workload runs `repeats` times; kernels are compiled and graphs captured in
the first, so the table shows the first and the best of the others' medians. `--profile` runs one workload again under
torch's profiler and lists the kernels by their share; `--beams 4` searches 16 prompts of 256 tokens for 128 more with
as many beams; `--gaps 256` runs as many sequences and prints how long the GPU was idle between two of their decode
steps.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import time
from typing import Any

import torch

from octavo import LLM, SamplingParams
from octavo.bench.workloads import NAMED, Work
from octavo.observe.events import StepDone


def main() -> None:
    args = _arguments()
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": 16384,
        "enable_prefix_caching": False,
    } | dict(_setting(one) for one in args.set)
    begin = time.perf_counter()
    llm = LLM(f"examples/configs/{args.model}", **options)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.model}, {options}")
    print(f"ready after {time.perf_counter() - begin:.2f} s")
    free = torch.cuda.mem_get_info()[0]
    steps: list[StepDone] = []
    llm.events.listen(lambda event: steps.append(event) if isinstance(event, StepDone) else None)
    for name in args.workloads:
        work = NAMED[name]()
        seconds = []
        for _ in range(args.repeats):
            steps.clear()
            seconds.append(_run(llm, work))
        best = statistics.median(seconds[1:] or seconds)
        print(_row(name, work, seconds[0]) + "   first", flush=True)
        print(_row(name, work, best) + f"   {_parts(steps)}", flush=True)
    print(
        f"graphs, libraries' workspaces and staging took {(free - torch.cuda.mem_get_info()[0]) >> 20} MiB since then"
    )
    if args.profile:
        _profile(llm, NAMED[args.profile]())
    if args.beams:
        _beams(llm, args.beams, args.repeats, steps)
    if args.gaps:
        _gaps(llm, args.gaps)
    llm.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("workloads", nargs="*", choices=list(NAMED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", choices=list(NAMED))
    parser.add_argument("--beams", type=int, metavar="WIDTH")
    parser.add_argument("--gaps", type=int, metavar="SEQUENCES")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an engine option")
    return parser.parse_args()


def _setting(text: str) -> tuple[str, Any]:
    name, value = text.split("=", 1)
    return name, ast.literal_eval(value)


def _run(llm: LLM, work: list[Work]) -> float:
    params = [
        SamplingParams(n=one.n, temperature=1.0, ignore_eos=True, max_tokens=one.output_len, detokenize=False)
        for one in work
    ]
    prompts = [list(one.prompt_token_ids) for one in work]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    num_tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    assert num_tokens == sum(one.num_output_tokens for one in work), "every request gives its whole length"
    return seconds


def _row(name: str, work: list[Work], seconds: float) -> str:
    num_in, num_out = sum(len(one.prompt_token_ids) for one in work), sum(one.num_output_tokens for one in work)
    if name == "prefill":
        rate = f"{num_in / seconds:11,.0f} in tok/s"
    elif name == "single":
        rate = f"{seconds * 1e3 / num_out:11.3f} ms/token"
    else:
        rate = f"{num_out / seconds:11,.0f} out tok/s"
    return f"{name:8} {seconds:8.3f} s  {rate}"


def _parts(steps: list[StepDone]) -> str:
    """Milliseconds of each part of a decode step; medians of the last run."""
    decodes = [step for step in steps if step.num_tokens == step.num_seqs]
    if not decodes:
        return f"{len(steps)} steps"
    parts = [statistics.median(getattr(step, part) for step in decodes) * 1e3 for part in _PARTS]
    return f"{len(steps)} steps; decodes: schedule {parts[0]:.3f} execute {parts[1]:.3f} update {parts[2]:.3f} ms"


_PARTS = ("schedule_s", "execute_s", "update_s")


def _profile(llm: LLM, work: list[Work]) -> None:
    """Device time by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = _run(llm, work)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    print(f"profiled: {seconds:.3f} s, kernels {total / 1e6:.3f} s")
    for row in rows[:24]:
        micros, count = row.self_device_time_total, row.count
        print(f"{micros / 1e3:9.1f} ms {micros / total:6.1%} {count:7} x {micros / count:7.1f} us  {row.key[:90]}")


def _beams(llm: LLM, width: int, repeats: int, steps: list[StepDone]) -> None:
    prompts = [list(range(100 * index, 100 * index + 256)) for index in range(1, 17)]
    params = SamplingParams(
        use_beam_search=True, n=width, temperature=0.0, max_tokens=128, ignore_eos=True, detokenize=False
    )
    seconds = []
    for _ in range(repeats + 1):
        steps.clear()
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - begin)
        assert all(len(one.token_ids) == 128 for output in outputs for one in output.outputs), "no beam ends early"
    num_tokens = len(prompts) * width * 128
    best = statistics.median(seconds[1:])
    print(f"beams of width {width}: first {seconds[0]:.3f} s, then {best:.3f} s  {num_tokens / best:,.0f} beam tok/s")
    print(_parts(steps))


def _gaps(llm: LLM, num_seqs: int) -> None:
    """Idle time before a decode step's first kernel, by the profiler's clock, over 48 steps with all sequences."""
    work = [Work(tuple(range(100, 164)), 1, 48) for _ in range(num_seqs)]
    _run(llm, work)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _run(llm, work)
    kernels = [event for event in profile.events() if event.device_type.name == "CUDA"]
    busy_until, gaps = 0.0, []
    for event in sorted(kernels, key=lambda event: event.time_range.start):
        if event.name == "_gather_kernel":
            gaps.append(event.time_range.start - busy_until)
        busy_until = max(busy_until, event.time_range.end)
    gaps = sorted(gaps[2:])
    print(
        f"{num_seqs} sequences, {len(gaps)} decode steps: the GPU idle before one for {statistics.median(gaps):.1f} us "
        f"(median), {gaps[len(gaps) * 9 // 10]:.1f} us (90 %), {gaps[-1]:.1f} us (most)"
    )


if __name__ == "__main__":
    main()
