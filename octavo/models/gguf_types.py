"""GGUF's numbers for types: of tensors, and of scalar metadata values."""

from __future__ import annotations

from octavo.kernels.tensor import DType

TENSOR_TYPES: dict[int, DType] = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1"},
    **{8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"},
}
#: Types of ggml that Octavo does not read, so that the error can name them.
UNSUPPORTED_TENSOR_TYPES: dict[int, str] = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
#: In numpy's names.
SCALAR_TYPES: dict[int, str] = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8"},
}
