"""A dense model as a compressed-tensors checkpoint: what is written, and one tensor after another.

    Hugging Face folder   every tensor under its own name; the matrices of layers become codes and scales
    stacks of experts     the same, but each expert's matrices, and biases, under names of their own
    GGUF                  its blocks made dense, under Hugging Face's names, with a config.json

Embeddings, the LM head, norms, biases, routers of experts and a vision part stay dense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import FloatArray, ScaledTensor
from octavo.kernels.tensor import DENSE_DTYPES, PART_DTYPES, DType, HostTensor, StoredTensor, at_hand, num_bytes
from octavo.models.checkpoint import Checkpoint
from octavo.models.config_file import read_json
from octavo.models.config_writer import config_of
from octavo.models.folder import canonical_names
from octavo.models.loader import open_checkpoint
from octavo.models.registry import parameters_of
from octavo.models.stacked_experts import STACKS
from octavo.models.weight_files import read_folder
from octavo.quantization.at_load import quantised
from octavo.quantization.compressing import Compression, compression
from octavo.quantization.described import is_in_layer, is_named, is_router
from octavo.shown import shown

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: families whose matrices are no Linear modules in Hugging Face's classes, which the format is made of
_WITHOUT_LINEAR = ("gpt2",)
_VISION = ("re:.*vision_tower.*", "re:.*multi_modal_projector.*")

#: sums of squares: of the changes, and of what has changed
Squares = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """products: of the matrix with calibration inputs, if there were any."""

    tensor: ScaledTensor
    products: Squares | None = None


#: a matrix by its canonical name and its numbers, and the type of its scales -> its codes
Codes = Callable[[str, FloatArray, Compression, DType], Coded]


@dataclass(frozen=True, slots=True)
class MatrixError:
    """What quantising changed. name: canonical. numbers, products: of the matrix, and of its products."""

    name: str
    numbers: Squares
    products: Squares | None


@dataclass(frozen=True, slots=True)
class _Tensor:
    """name: in the new file. canonical: of a matrix to be quantised."""

    name: str
    source: StoredTensor
    dtype: DType
    canonical: str | None


@dataclass(frozen=True, slots=True)
class QuantizedCopy:
    """config: the new config.json. tensors: by layer."""

    checkpoint: Checkpoint
    compression: Compression
    config: Mapping[str, Any]
    tensors: tuple[_Tensor, ...]

    @classmethod
    def of(
        cls,
        model: str,
        kind: str,
        group_size: int | None = None,
        dtype: str = "auto",
        ignore: Sequence[str] = (),
        has_zeros: bool = False,
    ) -> QuantizedCopy:
        """kind: fp8, int8, int4. dtype: of what stays dense; auto: as it is, bfloat16 where it is in blocks. ignore:
        modules that stay dense. has_zeros: a zero point for each group. Raises ConfigError, ModelLoadError."""
        checkpoint = open_checkpoint(ModelConfig(model=model))
        architecture = checkpoint.architecture
        _check_dense(checkpoint)
        table = parameters_of(architecture)
        matrices = _without(
            {name: shape for name, shape in table.items() if is_in_layer(name, shape) and not is_router(name)}, ignore
        )
        compressed = compression(kind, matrices.values(), group_size, has_zeros)
        keeps_names = isinstance(checkpoint.tokenizer_source, Path) and architecture.family not in STACKS
        if keeps_names:
            found = _of_folder(checkpoint)
        else:
            found = [(name, checkpoint.take(name, shape)) for name, shape in table.items()]
        tensors = [_Tensor(*one, _kept_dtype(one[1], dtype), None) for one in found]
        names = canonical_names((one.name for one in tensors), architecture.family)
        tensors = [_quantisable(one, names.get(one.name, ""), matrices, checkpoint) for one in tensors]
        dense = [name for name, shape in table.items() if len(shape) == 2 and name not in matrices]
        return cls(
            checkpoint,
            compressed,
            _config(checkpoint, compressed, dense, tensors),
            tuple(sorted(tensors, key=lambda one: -1 if one.canonical is None else layer_of(one.canonical))),
        )

    @property
    def layout(self) -> dict[str, tuple[DType, Shape]]:
        found: dict[str, tuple[DType, Shape]] = {}
        for one in self.tensors:
            if one.canonical is None:
                found[one.name] = one.dtype, one.source.shape
            else:
                layout = self.compression.layout(one.source.shape, one.dtype)
                found |= {one.name.removesuffix("weight") + suffix: entry for suffix, entry in layout.items()}
        return found

    @property
    def dense_bytes(self) -> int:
        """Of the same tensors without codes."""
        return sum(num_bytes(one.dtype, one.source.shape) for one in self.tensors)

    def written(self, codes: Codes) -> Iterator[tuple[dict[str, HostTensor], MatrixError | None]]:
        """Each tensor's new ones, in the order of `layout`, and what it lost. codes: quantises a matrix."""
        for one in self.tensors:
            if one.canonical is None:
                yield {one.name: _as(one.source.read(), one.dtype)}, None
                continue
            matrix = self._numbers(one)
            coded = codes(one.canonical, matrix, self.compression, one.dtype)
            change = dequantize_scaled(coded.tensor) - matrix
            squares = float(np.vdot(change, change)), float(np.vdot(matrix, matrix))
            stem = one.name.removesuffix("weight")
            new = {stem + suffix: tensor for suffix, tensor in self.compression.tensors(coded.tensor).items()}
            yield new, MatrixError(one.canonical, squares, coded.products)

    def in_layer(self, layer: int) -> Iterator[tuple[str, FloatArray, DType]]:
        """The matrices of a layer that are quantised: canonical name, numbers, and the type of their scales."""
        for one in self.tensors:
            if one.canonical is not None and layer_of(one.canonical) == layer:
                yield one.canonical, self._numbers(one), one.dtype

    def _numbers(self, tensor: _Tensor) -> FloatArray:
        matrix = dequantize(tensor.source.read())
        if not np.isfinite(matrix).all():
            raise ModelLoadError(
                f"{self.checkpoint.label}: tensor {tensor.name!r} has numbers that are not finite, which "
                f"{self.compression.kind} cannot hold; download the model again"
            )
        return matrix


def layer_of(name: str) -> int:
    """Of a matrix's canonical name."""
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None, "only matrices of layers are quantised"
    return int(found[1])


def nearest(name: str, matrix: FloatArray, compressed: Compression, scale_dtype: DType) -> Coded:
    """Each number on its own: the nearest that a code can stand for."""
    return Coded(quantised(matrix, compressed.format, scale_dtype))


def _check_dense(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.architecture
    if architecture.quantization is not None or any(dtype in PART_DTYPES for dtype in checkpoint.dtypes):
        method = architecture.quantization.method if architecture.quantization else "codes without a configuration"
        raise ConfigError(
            f"{checkpoint.label} has no dense weights, it is quantised as {method}: name the dense model it was made of"
        )
    if architecture.family in _WITHOUT_LINEAR:
        raise UnsupportedModelError(
            f"{checkpoint.label} is of the family {architecture.family!r}, and compressed-tensors stores Linear "
            "modules, which not all of its matrices are: serve it with --quantization, which quantises while loading"
        )


def _without(matrices: Mapping[str, Shape], ignored: Sequence[str]) -> dict[str, Shape]:
    for module in ignored:
        if not any(is_named(name, (module,)) for name in matrices):
            raise ConfigError(
                f"--ignore has {shown(module)}, which names no matrix of a layer: give names of modules, or parts of "
                f"them, such as {next(iter(matrices), '').removesuffix('.weight')!r}"
            )
    left = {name: shape for name, shape in matrices.items() if not is_named(name, ignored)}
    if not left:
        raise ConfigError(f"--ignore has {', '.join(map(shown, ignored))}, which leaves no matrix to be quantised")
    return left


def _of_folder(checkpoint: Checkpoint) -> list[tuple[str, StoredTensor]]:
    assert isinstance(checkpoint.tokenizer_source, Path), "a folder is its tokenizer's source"
    return [(name, at_hand(tensor)) for name, tensor in read_folder(checkpoint.tokenizer_source).tensors.items()]


def _kept_dtype(source: StoredTensor, asked: str) -> DType:
    """Whole numbers keep their type."""
    if source.dtype in PART_DTYPES:
        return source.dtype
    if asked != "auto":
        return _DTYPES[asked]
    return source.dtype if source.dtype in DENSE_DTYPES else "BF16"


def _quantisable(tensor: _Tensor, canonical: str, matrices: Mapping[str, Shape], checkpoint: Checkpoint) -> _Tensor:
    """The same, marked if it is one of the matrices."""
    if canonical not in matrices:
        return tensor
    if tensor.dtype not in DENSE_DTYPES or tensor.source.shape != matrices[canonical]:
        raise UnsupportedModelError(
            f"{checkpoint.label}: tensor {tensor.name!r} is {tensor.dtype} of shape {list(tensor.source.shape)}; a "
            f"matrix of {list(matrices[canonical])} is needed"
        )
    return replace(tensor, canonical=canonical)


def _config(
    checkpoint: Checkpoint, compressed: Compression, dense: list[str], tensors: list[_Tensor]
) -> dict[str, Any]:
    """dense: matrices that stay as they are."""
    has_vision = any(name in tensor.name for tensor in tensors for name in ("vision_tower", "multi_modal_projector"))
    linear = {name.removesuffix(".weight") for name in dense if "embed" not in name} | {"lm_head"}
    stated = {"quantization_config": compressed.config({*linear, *(_VISION if has_vision else ())})}
    if isinstance(checkpoint.tokenizer_source, Path):
        return read_json(checkpoint.tokenizer_source / "config.json") | stated
    kept = {tensor.dtype for tensor in tensors if tensor.canonical is None and len(tensor.source.shape) == 2}
    return config_of(checkpoint.architecture, _NAMES[kept.pop()]) | stated


def _as(tensor: HostTensor, dtype: DType) -> HostTensor:
    return tensor if tensor.dtype == dtype else convert(tensor, dtype)
