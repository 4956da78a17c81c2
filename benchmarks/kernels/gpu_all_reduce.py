"""Sums of all ranks, from 8 KB to 64 MB: over peer memory, by NCCL, and by torch's symmetric memory without multicast.

python -m benchmarks.kernels.gpu_all_reduce [ranks]

Microseconds a call in a CUDA graph of calls one after another, the slowest rank's. `one shot` and `split` are the two
ways of Octavo's kernel; the engine takes the one that `one_shot_bytes` chooses, and NCCL for what is larger than
`peer_bytes`. Then the same with what follows in a layer: residual add and RMSNorm, in one kernel and in two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # many machines do not let programs use it
os.environ.setdefault("NCCL_NVLS_ENABLE", "0")

import torch
import torch.distributed

from octavo.distributed.collectives import Collectives
from octavo.kernels.cuda.driver import find_gpu
from octavo.kernels.cuda.sizes import one_shot_bytes, peer_slots
from octavo.kernels.cuda.timing import graph_time_us, print_machine
from octavo.kernels.cuda_cpp.all_reduce import PeerAllReduce
from octavo.kernels.cuda_cpp.peer_memory import PeerMemory
from octavo.kernels.triton.elementwise import norm
from tests.gpu.gpu_ranks import on_all_gpus

MOST = 64 << 20
SIZES = [(8 << 10) << power for power in range(14)]
HIDDEN = 4096
CALLS = 40
Row = dict[str, float | str]


def measure(ranks: Collectives, device: torch.device) -> list[Row]:
    peers = {way: _peers(ranks, device, most) for way, most in (("one shot", MOST), ("split", 0))}
    symmetric = _symmetric(ranks, device)
    rows = []
    for num_bytes in SIZES:
        x = torch.zeros(num_bytes // (2 * HIDDEN), HIDDEN, dtype=torch.bfloat16, device=device)
        best = peers["one shot" if num_bytes <= one_shot_bytes(ranks.size) else "split"]
        reductions = {name: each.all_reduce for name, each in peers.items()} | {"NCCL": ranks.all_reduce} | symmetric
        ways = {name: partial(reduce, x) for name, reduce in reductions.items()} | _with_norm(x, best, ranks)
        rows.append({name: _timed(way) for name, way in ways.items()})
    return rows


def _with_norm(x: torch.Tensor, best: PeerAllReduce, ranks: Collectives) -> dict[str, Callable[[], None]]:
    weight, residual = torch.ones(HIDDEN, device=x.device), torch.zeros_like(x)

    def then_norm(reduce: Callable[[torch.Tensor], None]) -> None:
        reduce(x)
        norm.add_rms_norm(x, residual, weight, 1e-6, x, chained=True)

    return {
        "with norm": lambda: best.add_rms_norm(x, residual, weight, 1e-6, x),
        "and norm": lambda: then_norm(best.all_reduce),
        "NCCL, norm": lambda: then_norm(ranks.all_reduce),
    }


def _timed(call: Callable[[], object]) -> float | str:
    try:
        return graph_time_us([call] * CALLS)
    except RuntimeError as error:
        return str(error).splitlines()[0]


def _peers(ranks: Collectives, device: torch.device, one_shot: int) -> PeerAllReduce:
    gpu = find_gpu(ranks.rank)
    assert gpu is not None, "a rank has a GPU"
    memory = PeerMemory(ranks, 4 * peer_slots(ranks.size, MOST)[0])
    made = PeerAllReduce(memory, ranks.rank, torch.bfloat16, gpu, device, MOST, one_shot)
    made.prepare_norm(HIDDEN)
    return made


def _symmetric(ranks: Collectives, device: torch.device) -> dict[str, Callable[[torch.Tensor], Any]]:
    """torch's two ways, by name; it needs a process group that torch knows."""
    import torch.distributed._symmetric_memory as symmetric_memory

    port = ranks.of_first([_free_port() if ranks.rank == 0 else 0])[0]
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(
        "nccl", init_method=where, rank=ranks.rank, world_size=ranks.size, device_id=device
    )
    group = torch.distributed.group.WORLD
    assert group is not None, "it was just made"
    name = group.group_name
    memory = symmetric_memory.empty(MOST // 2, dtype=torch.bfloat16, device=device)
    memory.zero_()
    symmetric_memory.rendezvous(memory, name)
    ops: Any = torch.ops.symm_mem
    return {
        "torch one shot": lambda x: ops.one_shot_all_reduce(memory[: x.numel()], "sum", name),
        "torch two shot": lambda x: ops.two_shot_all_reduce_(memory[: x.numel()], "sum", name),
    }


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    num_ranks = int(sys.argv[1]) if len(sys.argv) > 1 else torch.cuda.device_count()
    print_machine()
    print(f"\nall-reduce of {num_ranks} ranks, bf16, us a call in a chained graph; rows of {HIDDEN}")
    found = on_all_gpus(num_ranks, measure, time_limit=240.0)
    names = list(found[0][0])
    print(f"{'KB':>6} " + " ".join(f"{name:>14}" for name in names))
    faults = set()
    for num_bytes, *rows in zip(SIZES, *found, strict=True):
        cells = []
        for name in names:
            values = [row[name] for row in rows]
            faults |= {f"{name}: {value}" for value in values if isinstance(value, str)}
            times = [value for value in values if isinstance(value, float)]
            cells.append(f"{max(times):14.2f}" if len(times) == len(values) else f"{'-':>14}")
        print(f"{num_bytes >> 10:>6} " + " ".join(cells), flush=True)
    print(*sorted(faults), sep="\n")


if __name__ == "__main__":
    main()
