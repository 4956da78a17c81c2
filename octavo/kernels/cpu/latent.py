"""The matrices of latent attention as the cpu backend packs them: for each head one from queries, one to values."""

from __future__ import annotations

import numpy as np

from octavo.kernels.cpu.weights import CpuWeights, PackedRows
from octavo.kernels.latent import Latent
from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.dequantize import values
from octavo.kernels.tensor import DENSE_DTYPES, DType, HostTensor, from_array


def held_dtype(up: Parameter) -> DType:
    """A dense matrix stays as it is; any other is made float32, as heads cut its blocks apart."""
    dtype = up.sources[0].dtype
    return dtype if up.scheme.format is None and dtype in DENSE_DTYPES else "F32"


def _stored_dtype(up: Parameter) -> DType:
    """The file's, if it has no scheme of its own."""
    return held_dtype(up) if up.scheme.format is not None else up.sources[0].dtype


def matrix_shapes(latent: Latent) -> tuple[tuple[int, int], tuple[int, int]]:
    """[outputs, inputs] of a head's matrices: from its query to the latents' side, and from there to its value."""
    return (latent.rank, latent.key_dim), (latent.value_dim, latent.rank)


def head_matrices(latent: Latent, weights: CpuWeights) -> tuple[HostTensor, HostTensor]:
    """Both, of all heads: [Q, R, N] and [Q, V, R]."""
    up, dtype = latent.up, held_dtype(latent.up)
    dense = up.dense() if dtype != "F32" else from_array(values(up))
    element = np.dtype(np.uint16 if dtype != "F32" else np.float32)
    whole = dense.data.view(element).reshape(latent.num_heads, -1, latent.rank)
    keys, own_values = whole[:, : latent.key_dim].transpose(0, 2, 1), whole[:, latent.key_dim :]
    weights.parameters[up.name] = PackedRows(_stored_dtype(up), up.shape, 0, (up.name,))
    return _tensor(keys, dtype), _tensor(own_values, dtype)


def _tensor(matrices: np.ndarray, dtype: DType) -> HostTensor:
    data = np.ascontiguousarray(matrices)
    return HostTensor(dtype, data.shape, data.reshape(-1).view(np.uint8))
