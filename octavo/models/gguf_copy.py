"""A GGUF file as another one with smaller blocks: its metadata and tokenizer as they are, its matrices quantised.

    matrices of layers       q8_0, q5_1, q5_0, q4_1 or q4_0
    embedding, LM head       the same, but q8_0 at least
    the rest                 as it is: norms, biases, routers of experts, rows that 32 does not divide

The package `gguf` reads the metadata, quantises and writes. One tensor is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import DType, HostTensor, num_bytes
from octavo.models.checkpoint import Checkpoint
from octavo.models.gguf import GGUFFile
from octavo.models.loader import open_checkpoint
from octavo.models.quantized_copy import MatrixError

if TYPE_CHECKING:
    import gguf

#: scheme -> its type, and llama.cpp's number for files of it (general.file_type)
GGUF_KINDS: dict[str, tuple[DType, int]] = {
    "q8_0": ("Q8_0", 7),
    "q5_1": ("Q5_1", 9),
    "q5_0": ("Q5_0", 8),
    "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}
_OUTER = ("token_embd.weight", "output.weight")
_MATRIX = re.compile(r"blk\.\d+\.(?!ffn_gate_inp)\w+\.weight")
_REWRITTEN = ("general.architecture", "general.file_type", "general.quantization_version")
_VERSION = 2  # of ggml's blocks


@dataclass(frozen=True, slots=True)
class GGUFCopy:
    """dtypes: of the new tensors, by name, in the order of the file."""

    checkpoint: Checkpoint
    source: GGUFFile
    kind: str
    dtypes: Mapping[str, DType]

    @classmethod
    def of(cls, model: str, kind: str) -> GGUFCopy:
        """Raises ConfigError, ModelLoadError."""
        checkpoint = open_checkpoint(ModelConfig(model=model))
        source = checkpoint.tokenizer_source
        if not isinstance(source, GGUFFile):
            raise ConfigError(
                f"scheme is {kind!r}, which is made of a GGUF file, and {checkpoint.label} is none: convert it first, "
                "with llama.cpp's script, or choose fp8, int8 or int4"
            )
        return cls(checkpoint, source, kind, {name: _dtype_of(name, one, kind) for name, one in source.tensors.items()})

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(self.dtypes[name], tensor.shape) for name, tensor in self.source.tensors.items())

    @property
    def dense_bytes(self) -> int:
        """Of the same tensors without blocks."""
        tensors = self.source.tensors.values()
        return sum(num_bytes(one.dtype if one.is_dense else "BF16", one.shape) for one in tensors)

    def written(self, path: Path) -> Iterator[tuple[int, MatrixError | None]]:
        """Write the file; for each tensor its bytes, and what a matrix of a layer has lost."""
        import gguf

        writer = gguf.GGUFWriter(path, str(self.source.metadata["general.architecture"]))
        try:
            _copy_metadata(writer, gguf.GGUFReader(self.source.path))
            writer.add_quantization_version(_VERSION)
            writer.add_file_type(GGUF_KINDS[self.kind][1])
            for name, tensor in self.source.tensors.items():
                dtype, size = self.dtypes[name], num_bytes(self.dtypes[name], tensor.shape)
                stored = (*tensor.shape[:-1], num_bytes(dtype, tensor.shape[-1:]))
                writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, gguf.GGMLQuantizationType[dtype])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in self.source.tensors.items():
                data, error = self._quantised(name, tensor)
                writer.write_tensor_data(data)
                yield data.nbytes, error
        finally:
            writer.close()

    def _quantised(self, name: str, tensor: HostTensor) -> tuple[np.ndarray[Any, Any], MatrixError | None]:
        import gguf

        dtype = self.dtypes[name]
        if dtype == tensor.dtype:
            return tensor.data, None
        numbers = dequantize(tensor)
        if not np.isfinite(numbers).all():
            raise ModelLoadError(
                f"{self.checkpoint.label}: tensor {name!r} has numbers that are not finite, which {self.kind} cannot "
                "hold; download the model again"
            )
        data: np.ndarray[Any, Any] = gguf.quantize(numbers, gguf.GGMLQuantizationType[dtype])
        if name in _OUTER:
            return data, None
        change = dequantize(HostTensor(dtype, tensor.shape, data.reshape(-1))) - numbers
        return data, MatrixError(name, (float(np.vdot(change, change)), float(np.vdot(numbers, numbers))), None)


def _dtype_of(name: str, tensor: HostTensor, kind: str) -> DType:
    is_matrix = len(tensor.shape) >= 2 and tensor.shape[-1] % 32 == 0
    if is_matrix and name in _OUTER:
        return "Q8_0"
    return GGUF_KINDS[kind][0] if is_matrix and _MATRIX.fullmatch(name) else tensor.dtype


def _copy_metadata(writer: gguf.GGUFWriter, reader: gguf.GGUFReader) -> None:
    """All keys with their types, but for those that the new file has its own of."""
    import gguf

    for field in reader.fields.values():
        if field.name in _REWRITTEN or field.name.startswith(("GGUF.", "split.")):
            continue
        if field.name == "general.alignment":
            writer.add_custom_alignment(field.contents())
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
