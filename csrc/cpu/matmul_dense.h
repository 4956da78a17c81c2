// Products with F32, F16 and BF16 weights, and with floats of 8 bits, for which activations are not rounded, as a rule.
#pragma once
#include "octavo/matmul.h"

namespace octavo {

// Null for any other dtype. rounds: activations to bfloat16, where weights are BF16.
std::unique_ptr<PackedMatrix> pack_dense(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                         int64_t cols, bool rounds);

// F8 in blocks of 32 or 128; null for any other dtype.
std::unique_ptr<PackedMatrix> pack_float8(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows,
                                          int64_t cols);

}  // namespace octavo
