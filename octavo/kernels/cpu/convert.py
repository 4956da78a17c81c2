"""Load-time conversion of weights to a dense type, in C++."""

from __future__ import annotations

import numpy as np

from octavo.kernels.cpu import library
from octavo.kernels.reference.dequantize import convert as reference_convert
from octavo.kernels.tensor import DENSE_DTYPES, DTYPES, DType, HostTensor, num_bytes
from octavo.observe.machine import num_cores


def convert(tensor: HostTensor, dtype: DType) -> HostTensor:
    """The tensor's values in a dense dtype, rounded to nearest even; itself if it has that dtype already. Raises
    OverflowError where a finite value does not fit float16."""
    assert dtype in DENSE_DTYPES, f"weights convert to {', '.join(sorted(DENSE_DTYPES))}, not to {dtype}"
    if tensor.dtype == dtype:
        return tensor
    loaded = library.load()
    pool = library.ThreadPool(loaded, num_cores())
    data = np.empty(num_bytes(dtype, tensor.shape), np.uint8)
    code = loaded.octavo_convert(
        pool.handle,
        DTYPES.index(tensor.dtype),
        library.address(tensor.data),
        tensor.row_bytes,
        tensor.rows,
        tensor.cols,
        DTYPES.index(dtype),
        library.address(data),
    )
    library.check(loaded, code, f"converting a {tensor.dtype} tensor to {dtype}")
    if dtype == "F16" and np.isinf(data.view(np.float16)).any():
        return reference_convert(tensor, dtype)  # tells overflow apart from values that were infinite before
    return HostTensor(dtype, tensor.shape, data)
