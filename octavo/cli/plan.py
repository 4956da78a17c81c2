"""octavo plan MODEL: the memory that an engine will take, before anything is loaded.

octavo plan smollm2                                on this machine
octavo plan meta-llama/Llama-3.1-8B --gpu h100     reads the configuration only
octavo plan model.gguf --memory 24GiB --max-num-seqs 64
octavo plan models/llama --gpu 4090 --concurrency 32 --context 8192
octavo plan Qwen/Qwen3-32B --gpu l40s -tp 2 -pp 2

Takes the engine's flags. A column shows one GPU of a model that 1, 2, 4 or 8 share, or of each stage of a pipeline.
Exit code 1 if nothing fits.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, get_args

from octavo.checked_fields import whole_number
from octavo.cli.flags import add_engine_flags, add_flags, check_counts, engine_options
from octavo.cli.memory_table import plan_table
from octavo.cli.parser import CommandParser
from octavo.config import BackendConfig
from octavo.engine.options import engine_config
from octavo.errors import ConfigError
from octavo.kernels.device import Device
from octavo.kernels.ledger import size
from octavo.observe.machine import memory
from octavo.server_config import Role
from octavo.worker.plan import MemoryPlan, Planner, advice, of_stage, plan_facts
from octavo.worker.task import WorkerTask
from octavo.worker.wish import Wish, suggest

COMMON = (
    *("--gpu", "--memory", "--concurrency", "--context", "--tensor-parallel-size", "--pipeline-parallel-size"),
    *("--json", "-v"),
    *("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--backend"),
)
_NOT_FLAGS = frozenset({"tensor_parallel_size", "pipeline_parallel_size"})
_SIZES = (1, 2, 4, 8)
_MOST_RANKS = 1024


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model()
    table: dict[str, tuple[str, Any, str]] = {
        "gpu": ("NAME", None, "plan for this GPU: h100, h200, b200, a100, l40s, l4, a10, 5090, 4090, 3090, ..."),
        "memory": (
            "SIZE",
            None,
            "plan for a GPU of this memory; with --backend cpu, for so much free memory",
        ),
        "concurrency": ("N", None, "requests that should run at once; suggests flags"),
        "context": ("N", None, "tokens of each of these, prompt and output; default: max_model_len"),
    }
    add_flags(parser, table)
    shared = "GPUs that share the model, 2 or 1,4 (default: 1,2,4,8 as heads allow)"
    parser.add_argument("--tensor-parallel-size", "-tp", metavar="LIST", help=shared)
    stages = "stages of consecutive layers; a column for each (default: 1)"
    parser.add_argument("--pipeline-parallel-size", "-pp", metavar="N", help=stages)
    moves = "plan an engine that hands its KV blocks to others, or gets theirs (default: both)"
    parser.add_argument("--role", choices=get_args(Role), default="both", help=moves)
    parser.add_argument("--serve", action="store_true", help="plan a server, whose steps are smaller")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the parts of each component")
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    check_counts(args, "concurrency", "context")
    asked, num_stages = _ranks(args.tensor_parallel_size), _num_stages(args.pipeline_parallel_size)
    room = None if args.memory is None else _bytes(args.memory)
    config, moves = engine_config(model=args.model, **engine_options(args, _NOT_FLAGS)), args.role != "both"
    task = WorkerTask.of(config, serves=args.serve or moves, moves_blocks=moves)
    device, where, room = _device(args, task.backend, room)
    planner = Planner.of(task, device, room)
    wish = Wish(args.concurrency or 1, args.context) if args.concurrency or args.context else None
    plans = _plans(planner, device, task, asked, num_stages)
    if wish is not None and num_stages > 1:
        raise ConfigError("--concurrency and --context suggest flags for a model in one stage: leave them out, or -pp")
    suggestion = None if wish is None else suggest(planner, task, wish, [plan.num_ranks for plan in plans])
    works = _starts(plans) if suggestion is None else suggestion.works
    if args.json:
        facts = {"model": planner.label, "device": where, "plans": [plan_facts(plan) for plan in plans]}
        print(json.dumps(facts | ({} if suggestion is None else {"suggestion": suggestion.facts()}), indent=2))
    else:
        _show(planner, task, where, plans, args.context, args.verbose)
        if suggestion is not None:
            print(f"\n{suggestion.text}")
    return 0 if works else 1


def _show(
    planner: Planner, task: WorkerTask, where: str, plans: list[MemoryPlan], context: int | None, verbose: bool
) -> None:
    print(f"{planner.label} on {where}\n")
    print("\n".join(plan_table(plans, context)))
    if verbose:
        print("\nof which, in the first column")
        for entry in plans[0].ledger.entries:
            print(f"  {entry.component:<12}{size(entry.num_bytes):>12}  {entry.what}")
    for plan in plans:
        if plan.problem is not None:
            own = of_stage(task, plan.stage, plan.num_stages)
            print(f"\n{_gpus(plan)}: {plan.problem}; {advice(planner, own, plan.num_ranks)}")


def _plans(
    planner: Planner, device: Device, task: WorkerTask, asked: list[int] | None, num_stages: int
) -> list[MemoryPlan]:
    if num_stages == 1:
        return [planner.plan(task, ranks) for ranks in _allowed(planner, device, task, asked)]
    if not device.sizes_cache_last:
        raise ConfigError("--pipeline-parallel-size is for GPUs, and this plan is for a CPU: leave it out")
    sizes = _allowed(planner, device, task, asked or [1])
    return [plan for ranks in sizes for plan in planner.stages(task, ranks, num_stages)]


def _starts(plans: list[MemoryPlan]) -> bool:
    """Whether all stages start, with some number of ranks."""
    sizes = {plan.num_ranks for plan in plans}
    return any(all(plan.problem is None for plan in plans if plan.num_ranks == size) for size in sizes)


def _gpus(plan: MemoryPlan) -> str:
    where = "" if plan.num_stages == 1 else f", stage {plan.stage}"
    return f"does not start{where}" if plan.num_ranks == 1 else f"does not start on {plan.num_ranks} GPUs{where}"


def _device(args: argparse.Namespace, backend: BackendConfig, room: int | None) -> tuple[Device, str, int | None]:
    """The device to plan for, in words, and its memory if it is not the one here."""
    from octavo.kernels.cuda.device import CudaDevice
    from octavo.kernels.cuda.driver import find_gpu
    from octavo.kernels.cuda.known import gpu_of_size, known_gpu
    from octavo.kernels.registry import select

    if args.gpu is not None and backend.backend not in ("auto", "triton"):
        raise ConfigError(f"--gpu is {args.gpu!r} and backend {backend.backend!r}, which computes on the CPU: drop one")
    gpu = known_gpu(args.gpu) if args.gpu is not None else None
    if gpu is None and room is not None and backend.backend in ("auto", "triton"):
        gpu = gpu_of_size(room)
    if gpu is not None:
        device: Device = CudaDevice.for_plan(backend, gpu)
        return device, f"{gpu.name}, {size(room or gpu.num_bytes)}", room
    found: Device = select(backend).device
    if found.sizes_cache_last and (here := find_gpu(backend.device_index)) is not None:
        return found, f"the GPU here, {here.name}, {size(here.num_bytes)}", None
    free = room or memory()[1]
    return found, f"{'the CPU here' if room is None else 'a CPU'} ({found.name}), {size(free)} free", free


def _allowed(planner: Planner, device: Device, task: WorkerTask, asked: list[int] | None) -> list[int]:
    """Tensor-parallel sizes that the model's heads allow, and its experts if ranks divide them."""
    if not device.sizes_cache_last:
        if asked not in (None, [1]):
            raise ConfigError("--tensor-parallel-size is for GPUs, and this plan is for a CPU: leave it out")
        return [1]
    backend = task.backend
    wrong = [ranks for ranks in asked or () if not planner.can_share(ranks, backend)]
    if wrong:
        good = [str(ranks) for ranks in range(1, 65) if planner.can_share(ranks, backend)]
        why = "does not divide its experts" if planner.can_share(wrong[0]) else "does not divide the model's heads"
        raise ConfigError(f"--tensor-parallel-size is {wrong[0]}, which {why}; allowed are {', '.join(good)}")
    return asked or [ranks for ranks in _SIZES if planner.can_share(ranks, backend)]


def _ranks(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers = [whole_number(one) for one in text.split(",")]
    if not numbers or any(number is None or not 1 <= number <= _MOST_RANKS for number in numbers):
        raise ConfigError(f"--tensor-parallel-size is {text[:80]!r}, allowed are numbers of GPUs such as 2 or 1,2,4")
    return sorted({number for number in numbers if number is not None})


def _num_stages(text: str | None) -> int:
    number = 1 if text is None else whole_number(text)
    if number is None or not 1 <= number <= _MOST_RANKS:
        raise ConfigError(f"--pipeline-parallel-size is {str(text)[:80]!r}, allowed is 1 to {_MOST_RANKS}")
    return number


def _bytes(text: str) -> int:
    """24GiB, 24G, 500MiB."""
    number = whole_number(text.strip().removesuffix("B").removesuffix("i"))
    if number is None or not 1 <= number < 2**63:
        raise ConfigError(f"--memory is {text[:80]!r}, allowed is a size such as 24GiB or 500MiB")
    return number
