"""octavo bench throughput: requests per second and tokens per second of a workload, under vLLM's flag names.

octavo bench throughput --model smollm2 --dataset-name ragged16 --num-prompts 64
octavo bench throughput --model smollm2 --input-len 512 --output-len 1 --num-prompts 8
octavo bench throughput --model smollm2 --dataset-name ragged16 --num-prompts 16 --backend octavo hf
octavo bench throughput --model smollm2 --dataset-name sharegpt --dataset-path ShareGPT.json --num-prompts 100
octavo bench throughput --model FOLDER --load-format dummy --dataset-name mixed --temperature 1
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from octavo.bench.workloads import Work
from octavo.cli.bench_throughput_dataset import add_dataset_flags, settle_dataset, workload_of
from octavo.cli.bench_vllm_flags import THROUGHPUT_FLAGS
from octavo.cli.flags import add_engine_flags, add_flags, check_counts, check_not_read, engine_options
from octavo.cli.parser import CommandParser
from octavo.cli.written_files import write_json

if TYPE_CHECKING:
    from octavo.bench.offline import Measurement

BACKENDS = ("octavo", "triton", "cpu", "reference", "hf")

# Here --backend names engines and --seed is the workload's.
COMMON = (
    *("--model", "--dataset-name", "--num-prompts", "--input-len", "--output-len", "--n", "--temperature", "--backend"),
    *("--output-json", "--load-format", "--max-num-seqs", "--max-num-batched-tokens"),
)
_NOT_FLAGS = frozenset({"backend", "seed"})

_FLAGS = {
    "temperature": ("X", 0.0, "0 takes the best token"),
    "hf-max-batch-size": ("N", 16, "sequences in a batch of hf"),
    "output-json": ("FILE", None, "write the result as JSON"),
}


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        default=["octavo"],
        help="octavo: the fastest kernels here; triton, cpu, reference: Octavo with these; hf: transformers' generate. "
        "Several are measured one after another and compared",
    )
    add_dataset_flags(parser)
    add_flags(parser, _FLAGS)
    parser.lacks(THROUGHPUT_FLAGS)
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    check_not_read("--output-json", args.output_json, {"--model": args.model, "--dataset-path": args.dataset_path})
    settle_dataset(args)
    check_counts(args, "hf_max_batch_size")
    workload = workload_of(args)
    from octavo.bench.offline import ratio_line

    measurements = []
    for backend in sorted(set(args.backend), key=BACKENDS.index):
        measured = _measure_hf(args, workload) if backend == "hf" else _measure_octavo(args, backend, workload)
        measurements.append(measured)
        print(measured.line(), flush=True)
    first, *others = measurements
    for other in others:
        print(ratio_line(first, other))
    if args.output_json:
        _write_json(args, measurements)
    return 0


def _measure_octavo(args: argparse.Namespace, backend: str, workload: list[Work]) -> Measurement:
    from octavo.bench.offline import measure_octavo
    from octavo.llm import LLM

    kernels = "auto" if backend == "octavo" else backend
    with LLM(args.model, backend=kernels, **engine_options(args, _NOT_FLAGS)) as llm:
        return measure_octavo(llm, workload, args.temperature, name=backend)


def _measure_hf(args: argparse.Namespace, workload: list[Work]) -> Measurement:
    from octavo.bench.offline import HuggingFaceModel
    from octavo.models.packaged import PACKAGED_MODELS, locate_packaged_model

    model = locate_packaged_model(args.model) if args.model in PACKAGED_MODELS else args.model
    hugging_face = HuggingFaceModel(model, getattr(args, "dtype", "auto"))
    return hugging_face.measure(workload, args.hf_max_batch_size, args.temperature)


def _write_json(args: argparse.Namespace, measurements: list[Measurement]) -> None:
    names = (
        "model",
        "dataset_name",
        "dataset_path",
        "num_prompts",
        "input_len",
        "output_len",
        "n",
        "temperature",
        "seed",
    )
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "workload": {name: getattr(args, name) for name in names},
        "results": [one.record() for one in measurements],
    }
    write_json(args.output_json, result)
