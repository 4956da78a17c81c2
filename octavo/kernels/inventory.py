"""The kernels of this machine: which backend runs each op and each kind of attention, and why the others do not.

The places of an op's kernels are found in the sources, so neither torch nor a compiler is needed to list them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from octavo.errors import BackendUnavailableError
from octavo.kernels import attention, registry
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.build.build import find_sources
from octavo.kernels.cpu.blocks import block_dtype
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.ops import OPS
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.tensor import DENSE_DTYPES, DType
from octavo.kernels.triton.coded import coded_format

_KERNELS = Path(__file__).parent
#: where a backend names its kernels -> how a line names the one of an op; the folder is csrc/ or octavo/kernels/
_PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "triton": (
        ("triton/elementwise/elementwise.py", r'\bOP == "{op}"'),
        ("cuda/program.py", r"def _{op}\("),
    ),
    "cpu": (("cpu/*.cpp", r'\{{"{op}"'), ("cpu/*.cpp", r"::append_{op}\(")),
    "reference": (("reference/ops.py", r'^    "{op}":'), ("reference/ops.py", r"def _{op}\(")),
}
_ATTENTION = {
    "flash_attn_4": "octavo/kernels/external/flash_attention.py",
    "cuda": "csrc/cuda/decode_attention.cu",
    "hopper": "octavo/kernels/triton/attention/hopper_decode.py",
    "triton": "octavo/kernels/triton/attention/decode_attention.py",
    "latent": "octavo/kernels/triton/attention/latent_attention.py",
    "deterministic": "octavo/kernels/triton/attention/fixed_attention.py",
}


#: what moves whole blocks between a KV pool and one buffer; layers do not call it -> what it does
BLOCK_MOVES = {
    "gather_blocks": "Packs KV blocks of all layers into one buffer, for another engine.",
    "scatter_blocks": "Puts the blocks of such a buffer into the KV pool.",
}
_HOST_MOVES = {"gather_blocks": r"def read\(.*\n        _wait", "scatter_blocks": r"def write\(.*\n        _wait"}


#: how matrices are stored, for people -> the format of their codes
CODES: dict[str, ScaledFormat] = {
    form.label: form
    for form in (
        *(ScaledFormat("F8_E4M3", block) for block in ((0, 0), (1, 0), (128, 128))),
        *(ScaledFormat("I8", (1, 0)), ScaledFormat("I8", (1, 0), has_zeros=True), ScaledFormat("I8", (1, 128))),
        *(ScaledFormat("U4", (1, 0)), ScaledFormat("U4", (1, 128)), ScaledFormat("U4", (1, 128), has_zeros=True)),
        ScaledFormat("U4", (1, 128), is_sorted=True),
        *(ScaledFormat("E2M1", (1, 32)), ScaledFormat("NF4", (1, 64))),
    )
}
_MATRIX = (4096, 4096)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to run something. runs: it is the one that this machine takes. why_not: None if it could run, else the
    reason why it cannot. where: file and line of an op's kernel."""

    name: str
    runs: bool
    why_not: str | None
    where: str = ""


@cache
def backends() -> dict[str, str | None]:
    """Every backend, best first, with the reason why it cannot run here, or None."""
    return dict(registry.describe())


def kernels_of(op: str) -> list[Kernel]:
    """An op's kernels, best backend first."""
    return _choices([(name, _missing(name, op) or why_not, _place(name, op)) for name, why_not in backends().items()])


def multiplies(backend: str, form: ScaledFormat) -> bool:
    """Whether a backend multiplies a large matrix's codes; else it makes them dense while loading."""
    if backend == "cpu":
        return block_dtype(form, _MATRIX) not in DENSE_DTYPES
    return backend == "triton" and coded_format.why_not(form, _MATRIX[1]) is None


def multiplies_blocks(backend: str, dtype: DType) -> bool:
    """The same of GGUF's blocks."""
    return backend == "cpu" or (backend == "triton" and dtype in coded_format.BLOCKS)


def attention_kernels(
    *, num_heads: int = 32, num_kv_heads: int = 8, head_dim: int = 128, dtype: KVDType = "bfloat16",
    block_size: int = 16, window: int | None = None,
) -> list[Kernel]:  # fmt: skip
    """The GPU's attention backends, best first, for such a layer. The one that runs takes what it can of a step, and
    leaves the rest to those below it."""
    device = CudaDevice()
    layer = AttentionLayer(0, 0, num_heads, num_kv_heads, head_dim, head_dim**-0.5, window=window)
    kv = KVLayout(1, block_size, (KVGroup(1, num_kv_heads, head_dim),), dtype)
    no_gpu = device.why_not()
    asked = [
        (name, no_gpu or _refusal(name, layer, dtype, kv, device.gpu), _ATTENTION.get(name, ""))
        for name in attention.BACKENDS
    ]
    return _choices(asked)


def _refusal(name: str, layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU | None) -> str | None:
    assert gpu is not None, "a usable device has a GPU"
    reasons = attention.BACKENDS[name]().why_not(layer, dtype, kv, gpu)
    if not reasons and name in attention.ONLY_IF_ASKED:
        reasons = [f"runs only if asked: {attention.ONLY_IF_ASKED[name]}"]
    return "; ".join(reasons) or None


def _choices(asked: list[tuple[str, str | None, str]]) -> list[Kernel]:
    first = next((name for name, why_not, _ in asked if why_not is None), None)
    return [Kernel(name, name == first, why_not, where) for name, why_not, where in asked]


def _missing(backend: str, op: str) -> str | None:
    return None if _place(backend, op) else f"{op} has no kernel there"


def _mover(backend: str, move: str) -> str:
    is_gpu = backend == "triton"
    file = "triton/packed_blocks.py" if is_gpu else "block_mover.py"
    pattern = rf"^def {move}\(" if is_gpu else _HOST_MOVES[move]
    return _found(_KERNELS / file, f"octavo/kernels/{file}", pattern)


def _place(backend: str, op: str) -> str:
    """File and line that name the op's kernel; empty if there is none."""
    if op in BLOCK_MOVES:
        return _mover(backend, op)
    assert op in OPS, f"{op} is no op"
    for files, pattern in _PLACES[backend]:
        for path, shown in _sources(backend, files):
            if place := _found(path, shown, pattern.format(op=op)):
                return place
    return ""


def _found(path: Path, shown: str, pattern: str) -> str:
    text = path.read_text(encoding="utf-8")
    match = re.search(pattern, text, re.MULTILINE)
    return f"{shown}:{text.count(chr(10), 0, match.start()) + 1}" if match else ""


def _sources(backend: str, files: str) -> list[tuple[Path, str]]:
    try:
        folder, shown = (find_sources(), "csrc") if backend == "cpu" else (_KERNELS, "octavo/kernels")
    except BackendUnavailableError:
        return []
    return [(path, f"{shown}/{path.relative_to(folder)}") for path in sorted(folder.glob(files))]
