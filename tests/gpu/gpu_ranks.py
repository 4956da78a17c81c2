"""Ranks on GPUs of their own, each in a process, that run a function of a test or a benchmark together."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from octavo.distributed.collectives import Collectives
from octavo.distributed.world import Meeting, World

T = TypeVar("T")
Run = Callable[..., T]


def on_all_gpus(num_ranks: int, run: Run[T], *given: Any, time_limit: float = 120.0) -> list[T]:
    """run(ranks, device, *given) of each rank; a function at the top of a module. Raises the first rank's error."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(num_ranks)]
    processes = []
    for rank, (_, theirs) in enumerate(pipes):
        arguments = (theirs, rank, num_ranks, time_limit, run, given)
        processes.append(context.Process(target=_rank, args=arguments, daemon=True))
    try:
        for process in processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        port = pipes[0][0].recv()
        if not isinstance(port, int):
            raise RuntimeError(port[1])
        for ours, _ in pipes[1:]:
            ours.send(port)
        results = [_result(rank, ours, time_limit) for rank, (ours, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
    return results


def _result(rank: int, pipe: Connection, time_limit: float) -> Any:
    if not pipe.poll(2 * time_limit):
        raise TimeoutError(f"rank {rank} was not done after {2 * time_limit:g} s")
    is_done, result = pipe.recv()
    if not is_done:
        raise RuntimeError(f"rank {rank}:\n{result}")
    return result


def _rank(pipe: Connection, rank: int, num_ranks: int, time_limit: float, run: Run[T], given: tuple[Any, ...]) -> None:
    try:
        listener = socket.create_server(("127.0.0.1", 0)) if rank == 0 else None
        if listener is not None:
            pipe.send(listener.getsockname()[1])
            place = Meeting(port=listener.getsockname()[1], listener=listener.detach(), time_limit=time_limit)
        else:
            place = Meeting(port=pipe.recv(), listener=-1, time_limit=time_limit)
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        ranks = Collectives(World(rank=rank, tensor_parallel_size=num_ranks), place, str(device))
        pipe.send((True, run(ranks, device, *given)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    pipe.recv()  # stays until it is killed: another rank may still read this one's memory
